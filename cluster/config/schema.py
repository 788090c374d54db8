"""Configuration of a run: every key, its meaning and its checks; YAML and dotted overrides in, a dataclass out.

Paths are relative to the current working directory, wherever the YAML file lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from learner.config import LearnerConfig, Token2TextModelConfig
from rewards.config import RewardConfig
from rollout.config import EncoderConfig, EngineConfig, SamplingConfig
from speech.audio import AudioLimits


@dataclass
class ModelConfig:
    path: str = field(
        metadata={
            "help": "Folder of the starting checkpoint, in Hugging Face form; with `objective: token2text` the "
            "Token2Text model to start from, or `new` for one of the shape in `token2text`."
        }
    )
    family: str | None = field(
        default=None,
        metadata={"help": "Model family; null finds it by `model_type` in the checkpoint's `config.json`."},
    )
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Options of the family (docs/model-families.md), such as `force_language: en`."},
    )
    codec: str | None = field(
        default=None, metadata={"help": "Folder of the codec whose tokens the model speaks or reads; only for TTS."}
    )


@dataclass
class DataConfig:
    train: str = field(metadata={"help": "Manifest to train on."})
    valid: str | None = field(
        default=None, metadata={"help": "Manifest for the evaluations during training (`evaluation.every`)."}
    )
    test: str | None = field(
        default=None,
        metadata={"help": "Manifest for the evaluations before and after training; nothing else ever reads it."},
    )
    format: str = field(
        default="auto",
        metadata={
            "help": "Form of the manifests: `jsonl` (ours), `kaldi` (a directory), `funasr` or `chat` (jsonl), "
            "`seed_tts` (`meta.lst`); `auto` looks at the first lines.",
            "choices": ("auto", "jsonl", "kaldi", "funasr", "chat", "seed_tts"),
        },
    )
    on_bad: str = field(
        default="error",
        metadata={"help": "Bad lines: stop with a list of them, or leave them out.", "choices": ("error", "skip")},
    )
    batch_prompts: int = field(default=32, metadata={"help": "Prompts per step.", "min": 1})
    limits: AudioLimits = field(default_factory=AudioLimits, metadata={"help": "Accepted lengths of audio."})
    shuffle: bool = field(
        default=True, metadata={"help": "A new order in every epoch, from `seed`; false keeps the manifest's order."}
    )
    replay: str | None = field(
        default=None, metadata={"help": "Not in `sft`: manifest for cross-entropy replay mixed into every step."}
    )
    replay_weight: float = field(
        default=0.0, metadata={"help": "Weight of the replay's cross-entropy beside the policy loss.", "min": 0.0}
    )
    replay_batch: int = field(default=8, metadata={"help": "Replay utterances per step.", "min": 1})

    def __post_init__(self) -> None:
        if (self.replay is not None) != (self.replay_weight > 0):
            raise ValueError("`replay` and a `replay_weight` above 0 only make sense together")


@dataclass
class PublishConfig:
    bucket_mb: int = field(default=256, metadata={"help": "Size of one piece of weights on its way, in MiB.", "min": 1})
    probe_tokens: int = field(
        default=48,
        metadata={"help": "Tokens whose log-probs learner and engine must agree on after a publication.", "min": 2},
    )
    probe_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Largest |Δ log-prob| at which a publication counts as verified; null takes 1e-3 for float32 "
            "engines and 0.2 for bfloat16 ones.",
            "min": 0.0,
        },
    )
    timeout_s: float = field(
        default=300.0,
        metadata={
            "help": "Budget of a publication until the engines have their turn, and then of each engine's update, in "
            "seconds.",
            "min": 1,
        },
    )


@dataclass
class EvaluationConfig:
    before: bool = field(default=True, metadata={"help": "Evaluate `data.test` before the first step."})
    after: bool = field(default=True, metadata={"help": "Evaluate `data.test` after the last step."})
    every: int = field(default=0, metadata={"help": "Evaluate `data.valid` every so many steps; 0 = never.", "min": 0})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest greedy response; null takes `sampling.max_new_tokens`.", "min": 1}
    )
    sampled: bool = field(
        default=False,
        metadata={
            "help": "Also evaluate one sample per utterance, drawn at `sampling.temperature` with fixed seeds: in "
            "`sampled` beside the greedy figures."
        },
    )
    samples_shown: int = field(
        default=3, metadata={"help": "Transcripts shown at the end, before beside after.", "min": 0}
    )


@dataclass
class CheckpointConfig:
    every: int = field(
        default=20, metadata={"help": "Steps between checkpoints; the last step always has one.", "min": 1}
    )
    keep: int = field(default=2, metadata={"help": "Checkpoints kept, the newest first.", "min": 1})
    keep_best: int = field(
        default=1,
        metadata={
            "help": "Checkpoints kept besides, those of the lowest WER of `data.valid` (`token2text`: CER); counts "
            "only steps at which it was evaluated (`evaluation.every`).",
            "min": 0,
        },
    )
    asynchronous: bool = field(
        default=True,
        metadata={
            "help": "Training goes on while a copy of the state is written, which takes host memory for one more set "
            "of trained weights and moments; false waits."
        },
    )
    timeout_s: float = field(
        default=1800.0, metadata={"help": "Longest time for writing one checkpoint, in seconds.", "min": 1}
    )


@dataclass
class RayConfig:
    address: str | None = field(
        default=None,
        metadata={
            "help": "Cluster to join (`auto`, `ray://host:10001`); null takes RAY_ADDRESS, which Ray sets in its jobs, "
            "or else starts Ray on this machine."
        },
    )
    num_cpus: int | None = field(
        default=None, metadata={"help": "CPUs Ray may use when it starts here; null = all.", "min": 1}
    )
    object_store_mb: int | None = field(
        default=None, metadata={"help": "Object store in MiB when Ray starts here; null = Ray's choice.", "min": 80}
    )


@dataclass
class RunConfig:
    """A whole run. Defaults suit a small model on one machine without a GPU."""

    name: str = field(metadata={"help": "Name of the run; its results are in `<runs_dir>/<name>`."})
    model: ModelConfig = field(metadata={"help": "The model that is trained."})
    data: DataConfig = field(metadata={"help": "Speech to train and evaluate on."})
    steps: int = field(
        default=100,
        metadata={
            "help": "Steps of the whole run, those before a resume included. With a decaying learning rate, another "
            "number also changes the schedule.",
            "min": 0,
        },
    )
    seed: int = field(default=0, metadata={"help": "Everything random derives from it.", "min": 0})
    objective: str = field(
        default="grpo",
        metadata={
            "help": "`grpo` samples and learns from rewards; `diffro` (TTS) learns from a differentiable reward on "
            "what it samples; `combined` does both; `sft` learns the references by cross-entropy; `token2text` trains "
            "the reward model of DiffRO.",
            "choices": ("grpo", "diffro", "combined", "sft", "token2text"),
        },
    )
    runs_dir: str = field(default="runs", metadata={"help": "Folder for the results of all runs."})
    staleness: int = field(
        default=0,
        metadata={
            "help": "S, how many versions a sample may be behind the learner when it is trained; never more. 0 is "
            "synchronous and on-policy; above 0 engines sample the next S steps while the learner learns.",
            "min": 0,
        },
    )
    update: str = field(
        default="drain",
        metadata={
            "help": "What a publication does to running samples when `staleness` is above 0: `drain` lets them end "
            "under their version first, `inflight` freezes them and lets them go on under the new one.",
            "choices": ("drain", "inflight"),
        },
    )
    placement: str = field(
        default="disaggregated",
        metadata={
            "help": "`disaggregated`: every component has its own devices. `colocated`: engines, encoder and learner "
            "take turns on the same GPUs and leave them when their turn is over; without GPUs nothing has to leave.",
            "choices": ("disaggregated", "colocated"),
        },
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig, metadata={"help": "How groups are sampled."})
    engines: EngineConfig = field(default_factory=EngineConfig, metadata={"help": "The vLLM rollout engines."})
    encoder: EncoderConfig = field(default_factory=EncoderConfig, metadata={"help": "The audio-encoder actors."})
    rewards: RewardConfig = field(default_factory=RewardConfig, metadata={"help": "What samples are scored by."})
    learner: LearnerConfig = field(default_factory=LearnerConfig, metadata={"help": "The FSDP2 learner group."})
    token2text: Token2TextModelConfig = field(
        default_factory=Token2TextModelConfig, metadata={"help": "The reward model that `token2text` trains."}
    )
    publish: PublishConfig = field(
        default_factory=PublishConfig, metadata={"help": "Weights on their way from the learner to the engines."}
    )
    evaluation: EvaluationConfig = field(
        default_factory=EvaluationConfig, metadata={"help": "Greedy decoding and WER / CER on held-out speech."}
    )
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata={"help": "When state is saved."})
    ray: RayConfig = field(default_factory=RayConfig, metadata={"help": "The Ray cluster."})
    watchdog_minutes: float = field(
        default=10.0,
        metadata={
            "help": "Minutes without a new phase or step after which the run says what it waits for; 0 = never.",
            "min": 0.0,
        },
    )

    @property
    def uses_diffro(self) -> bool:
        """Whether the differentiable reward is part of the loss."""
        return self.objective in ("diffro", "combined") and self.learner.diffro.weight > 0
