"""Configuration of the rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rewards.registries import JUDGES, SPEAKER_MODELS
from speech.runtime.pool_size import PoolSize


@dataclass
class RewardItem:
    """One reward of the composition."""

    name: str = field(metadata={"help": "registered reward, or module:function (module:Class) of your own"})
    weight: float = field(default=1.0, metadata={"help": "factor in the weighted sum; 0 only logs the part"})
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the reward, see docs/rewards.md; unknown ones are errors"}
    )


@dataclass
class JudgeConfig:
    """A recogniser that reads synthesised speech."""

    kind: str = field(
        default="",
        metadata={
            "help": "`demo` (a checkpoint of this project), `transformers` (Whisper, Qwen3-ASR), `funasr` (SenseVoice, "
            "Paraformer) or `faster_whisper`; empty = no judge",
            "choices": JUDGES,
        },
    )
    path: str = field(
        default="",
        metadata={
            "help": "folder of the model, its name on the hub, or `package:name/folder`, a folder inside the installed "
            "Python package `name`"
        },
    )
    languages: list[str] = field(
        default_factory=list, metadata={"help": "languages it knows; empty takes what the model itself states"}
    )
    numerals: bool = field(
        default=True,
        metadata={
            "help": "may write digits; `false` makes it spell numbers, so that `nine zero zero` does not come back as "
            "`900` (`faster_whisper` only)"
        },
    )
    device: str = field(default="cpu", metadata={"help": "torch device"})


@dataclass
class SpeakerConfig:
    """A model that turns speech into a speaker embedding."""

    kind: str = field(
        default="resemblyzer",
        metadata={
            "help": "`resemblyzer` (weights in its wheel), `xvector` (transformers: WavLM) or `funasr` (CAM++, "
            "ERes2Net)",
            "choices": SPEAKER_MODELS,
        },
    )
    path: str = field(default="", metadata={"help": "folder of the model, or its name on the hub; not for resemblyzer"})
    device: str = field(default="cpu", metadata={"help": "torch device"})


@dataclass
class SoundConfig:
    """How reward actors listen to speech tokens. Nothing of it is loaded unless a reward asks for it."""

    judge: JudgeConfig = field(default_factory=JudgeConfig, metadata={"help": "recogniser behind the rewards"})
    second_judge: JudgeConfig = field(
        default_factory=JudgeConfig,
        metadata={"help": "another recogniser, for evaluation alone: training never hears it"},
    )
    speaker: SpeakerConfig = field(default_factory=SpeakerConfig, metadata={"help": "speaker embeddings"})
    batch: int = field(default=16, metadata={"help": "samples that a model decodes or reads at once", "min": 1})
    threads: int = field(default=1, metadata={"help": "CPU threads of each reward actor's models", "min": 1})
    silence_peak: float = field(
        default=0.001, metadata={"help": "a sample whose largest value is below it is silent", "min": 0.0}
    )


def _default_items() -> list[RewardItem]:
    return [RewardItem("accuracy"), RewardItem("hallucination", weight=0.5)]


@dataclass
class RewardConfig(PoolSize):
    """Which rewards are computed, how they are combined, and who computes them."""

    items: list[RewardItem] = field(
        default_factory=_default_items, metadata={"help": "rewards of the weighted sum, each at most once"}
    )
    normalise_parts: bool = field(
        default=False,
        metadata={"help": "z-normalise each part over its group before weighting, so that no part's scale dominates"},
    )
    count: int = field(default=1, metadata={"help": "number of reward actors at the start", "min": 1})
    min: int | None = field(
        default=None,
        metadata={"help": "fewest reward actors to shrink to; null takes `count`: never shrink", "min": 1},
    )
    max: int | None = field(
        default=None, metadata={"help": "most reward actors to grow to; null takes `count`: never grow", "min": 1}
    )
    timeout_s: float = field(
        default=60.0,
        metadata={"help": "seconds a reward actor may take for one call; then it is killed and replaced", "min": 0.1},
    )
    retries: int = field(
        default=1,
        metadata={"help": "attempts after a time-out or a lost actor, before the samples become invalid", "min": 0},
    )
    sound: SoundConfig = field(default_factory=SoundConfig, metadata={"help": "models for rewards on sound"})
