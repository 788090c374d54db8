"""Configuration of the rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from rewards.registries import JUDGES, SPEAKER_MODELS
from speech.runtime.pool_size import PoolSize
from speech.runtime.schema import OneOf


@dataclass
class RewardItem:
    """One reward of the composition."""

    name: str
    """Registered reward, or module:function (module:Class) of your own."""

    weight: float = 1.0
    """Factor in the weighted sum; 0 only logs the part."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the reward, see docs/rewards.md; unknown ones are errors."""


@dataclass
class JudgeEngineConfig:
    """The engine of a `vllm` judge."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations, of the encoder too."""

    max_model_len: Annotated[int, Ge(2)] = 1024
    """Sound, prompt and transcript, in positions."""

    kv_cache_gb: Annotated[float, Ge(0.01)] = 1.0
    """Key-value cache in GiB, CPU only."""


@dataclass
class JudgeConfig:
    """A recogniser that reads synthesised speech."""

    kind: Annotated[str, OneOf(JUDGES, ("",))] = ""
    """`demo` (a checkpoint of this project), `transformers` (Whisper, Qwen3-ASR), `funasr` (SenseVoice, Paraformer),
    `faster_whisper` or `vllm` (a model family that hears, on an engine); empty = no judge."""

    path: str = ""
    """Folder of the model, its name on the hub, or `package:name/folder`, a folder inside the installed Python package
    `name`."""

    languages: list[str] = field(default_factory=list)
    """Languages it knows; empty takes what the model itself states."""

    numerals: bool = True
    """May write digits; `false` makes it spell numbers, so that `nine zero zero` does not come back as `900`
    (`faster_whisper` only)."""

    device: str = "cpu"
    """Torch device; `vllm` follows `gpus` instead."""

    gpus: Annotated[float, Ge(0), Le(1)] = 0.0
    """GPU, or a share of one, that each process with this judge asks Ray for; `vllm` runs on it, in that share of its
    memory."""

    engine: JudgeEngineConfig = field(default_factory=JudgeEngineConfig)
    """Of the kind `vllm` only."""


@dataclass
class SpeakerConfig:
    """A model that turns speech into a speaker embedding."""

    kind: Annotated[str, OneOf(SPEAKER_MODELS)] = "resemblyzer"
    """`resemblyzer` (weights in its wheel), `xvector` (transformers: WavLM) or `funasr` (CAM++, ERes2Net)."""

    path: str = ""
    """Folder of the model, or its name on the hub; not for resemblyzer."""

    device: str = "cpu"
    """Torch device."""


@dataclass
class SoundConfig:
    """How reward actors listen to speech tokens. Nothing of it is loaded unless a reward asks for it."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Recogniser behind the rewards."""

    second_judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Another recogniser, for evaluation alone: training never hears it."""

    speaker: SpeakerConfig = field(default_factory=SpeakerConfig)
    """Speaker embeddings."""

    batch: Annotated[int, Ge(1)] = 16
    """Samples that a model decodes or reads at once."""

    threads: Annotated[int, Ge(1)] = 1
    """CPU threads of each reward actor's models."""

    silence_peak: Annotated[float, Ge(0)] = 0.001
    """A sample whose largest value is below it is silent."""


def _default_items() -> list[RewardItem]:
    return [RewardItem("accuracy"), RewardItem("hallucination", weight=0.5)]


@dataclass
class RewardConfig(PoolSize):
    """Which rewards are computed, how they are combined, and who computes them."""

    items: list[RewardItem] = field(default_factory=_default_items)
    """Rewards of the weighted sum, each at most once."""

    normalise_parts: bool = False
    """Z-normalise each part over its group before weighting, so that no part's scale dominates."""

    timeout_s: Annotated[float, Ge(0.1)] = 60.0
    """Seconds a reward actor may take for one call; then it is killed and replaced."""

    retries: Annotated[int, Ge(0)] = 1
    """Attempts after a time-out or a lost actor, before the samples become invalid."""

    sound: SoundConfig = field(default_factory=SoundConfig)
    """Models for rewards on sound."""
