"""Configuration of a run: every key with its type, range and default, and its meaning below it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from cluster.config.registries import TRACKERS
from learner.config import LearnerConfig, Token2TextModelConfig
from rewards.config import RewardConfig
from rollout.config import EncoderConfig, EngineConfig, SamplingConfig
from speech.audio import AudioLimits
from speech.runtime.schema import OneOf


@dataclass
class ModelConfig:
    path: str
    """Folder of the starting checkpoint, in Hugging Face form, or its name on the hub (`owner/name`,
    `owner/name@revision`), which is fetched unless it is cached; with `objective: token2text` the Token2Text model to
    start from, or `new` for one of the shape in `token2text`."""

    family: str | None = None
    """Model family; null finds it by `model_type` in the checkpoint's `config.json`."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the family (docs/model-families.md), such as `force_language: en`."""

    codec: str | None = None
    """Folder of the codec whose tokens the model speaks or reads; only for TTS. `module:attribute@folder` adds a codec
    class, or a token2wav, of your own (docs/codecs.md)."""


@dataclass
class DataConfig:
    train: str
    """Manifest to train on."""

    valid: str | None = None
    """Manifest for the evaluations during training (`evaluation.every`)."""

    test: str | None = None
    """Manifest for the evaluations before and after training; nothing else ever reads it."""

    format: Literal[
        "auto", "jsonl", "kaldi", "funasr", "chat", "qwen3_asr", "nemo", "lhotse", "seed_tts", "common_voice",
        "parquet", "datasets", "webdataset",
    ] = "auto"  # fmt: skip
    """Form of the manifests: `jsonl` (ours) or one of the others of docs/data.md; `auto` looks at what is there."""

    on_bad: Literal["error", "skip"] = "error"
    """What cannot be used: stop with a list of it, or do without. `skip` leaves out bad lines; a prompt whose utterance
    turns out to be bad later is rejected, with its reason in the ledger, and another takes its place."""

    max_rejected: Annotated[float, Ge(0), Le(1)] = 0.1
    """Largest share of bad prompts among the last 200; with more the run stops. Bad is one whose utterance cannot be
    used (`on_bad: skip`), and one of whose samples fewer than two have a reward."""

    batch_prompts: Annotated[int, Ge(1)] = 32
    """Prompts per step."""

    limits: AudioLimits = field(default_factory=AudioLimits)
    """Accepted lengths of audio."""

    shuffle: bool = True
    """A new order in every epoch, from `seed`; false keeps the manifest's order."""

    replay: str | None = None
    """Manifest for cross-entropy replay mixed into every step; only where the policy is sampled."""

    replay_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the replay's cross-entropy beside the policy loss."""

    replay_batch: Annotated[int, Ge(1)] = 8
    """Replay utterances per step."""

    def __post_init__(self) -> None:
        if (self.replay is not None) != (self.replay_weight > 0):
            raise ValueError("`replay` and a `replay_weight` above 0 only make sense together")


@dataclass
class PublishConfig:
    bucket_mb: Annotated[int, Ge(1)] = 256
    """Size of one piece of weights on its way, in MiB."""

    probe_tokens: Annotated[int, Ge(2)] = 96
    """Tokens drawn anew for each publication, on which learner and engine must agree after it."""

    probe_tolerance: Annotated[float, Ge(0)] | None = None
    """Largest mean |Δ log-prob| over the probe at which a publication counts as verified; null takes twice what the
    learner expects of the engine's precision on this model."""

    timeout_s: Annotated[float, Ge(1)] = 300.0
    """Budget of a publication until the engines have their turn, and then of each engine's update, in seconds."""


@dataclass
class EvaluationConfig:
    before: bool = True
    """Evaluate `data.test` before the first step."""

    after: bool = True
    """Evaluate `data.test` after the last step."""

    every: Annotated[int, Ge(0)] = 0
    """Evaluate `data.valid` every so many steps; 0 = never."""

    max_new_tokens: Annotated[int, Ge(1)] | None = None
    """Longest greedy response; null takes `sampling.max_new_tokens`."""

    sampled: bool = False
    """Also evaluate one sample per utterance, drawn at `sampling.temperature` with fixed seeds: in `sampled` beside the
    greedy figures."""

    samples_shown: Annotated[int, Ge(0)] = 3
    """Transcripts shown at the end, before beside after."""


@dataclass
class CheckpointConfig:
    every: Annotated[int, Ge(1)] = 20
    """Steps between checkpoints; the last step always has one."""

    keep: Annotated[int, Ge(1)] = 2
    """Checkpoints kept, the newest first."""

    keep_best: Annotated[int, Ge(0)] = 1
    """Checkpoints kept besides, those of the lowest WER of `data.valid` (`token2text`: CER; of models that speak
    `wer_capped`, in which samples that failed count as wrong); counts only steps at which it was evaluated
    (`evaluation.every`)."""

    asynchronous: bool = True
    """Training goes on while a copy of the state is written, which takes host memory for one more set of trained
    weights and moments; false waits."""

    timeout_s: Annotated[float, Ge(1)] = 1800.0
    """Longest time for writing one checkpoint, in seconds."""


@dataclass
class RayConfig:
    address: str | None = None
    """Cluster to join (`auto`, `ray://host:10001`); null takes RAY_ADDRESS, which Ray sets in its jobs, or else starts
    Ray on this machine."""

    num_cpus: Annotated[int, Ge(1)] | None = None
    """CPUs Ray may use when it starts here; null = all."""

    object_store_mb: Annotated[int, Ge(80)] | None = None
    """Object store in MiB when Ray starts here; null = Ray's choice."""


@dataclass
class RunConfig:
    """A whole run. Defaults suit a small model on one machine without a GPU."""

    name: str
    """Name of the run; its results are in `<runs_dir>/<name>`."""

    model: ModelConfig
    """The model that is trained."""

    data: DataConfig
    """Speech to train and evaluate on."""

    steps: Annotated[int, Ge(0)] = 100
    """Steps of the whole run, those before a resume included. With a decaying learning rate, another number also
    changes the schedule."""

    seed: Annotated[int, Ge(0)] = 0
    """Everything random derives from it."""

    objective: Literal["grpo", "diffro", "combined", "sft", "token2text"] = "grpo"
    """`grpo` samples and learns from rewards; `diffro` (TTS) learns from a differentiable reward on what it samples;
    `combined` does both; `sft` learns the references by cross-entropy; `token2text` trains the reward model of
    DiffRO."""

    runs_dir: str = "runs"
    """Folder for the results of all runs."""

    staleness: Annotated[int, Ge(0)] = 0
    """S, how many versions a sample may be behind the learner when it is trained; never more. 0 is synchronous and
    on-policy; above 0 engines sample the next S steps while the learner learns."""

    update: Literal["drain", "inflight"] = "drain"
    """What a publication does to running samples when `staleness` is above 0: `drain` lets them end under their version
    first, `inflight` freezes them and lets them go on under the new one."""

    placement: Literal["disaggregated", "colocated"] = "disaggregated"
    """`disaggregated`: every component has its own devices. `colocated`: engines, encoder and learner take turns on the
    same GPUs and leave them when their turn is over (experimental: no engine has slept and woken on a GPU yet); without
    GPUs nothing has to leave."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How groups are sampled."""

    engines: EngineConfig = field(default_factory=EngineConfig)
    """The vLLM rollout engines."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The audio-encoder actors."""

    rewards: RewardConfig = field(default_factory=RewardConfig)
    """What samples are scored by."""

    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """The FSDP2 learner group."""

    token2text: Token2TextModelConfig = field(default_factory=Token2TextModelConfig)
    """The reward model that `token2text` trains."""

    publish: PublishConfig = field(default_factory=PublishConfig)
    """Weights on their way from the learner to the engines."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Greedy decoding and WER / CER on held-out speech."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When state is saved."""

    ray: RayConfig = field(default_factory=RayConfig)
    """The Ray cluster."""

    trackers: list[Annotated[str, OneOf(TRACKERS)]] = field(default_factory=list)
    """Where metrics, tables and sounds go besides the run's folder: `wandb`, `mlflow`, `trackio`, or a `module:Class`
    of your own (docs/operations.md)."""

    watchdog_minutes: Annotated[float, Ge(0)] = 10.0
    """Minutes without a new phase or step after which the run says what it waits for; 0 = never."""

    @property
    def uses_diffro(self) -> bool:
        """Whether the differentiable reward is part of the loss."""
        return self.objective in ("diffro", "combined") and self.learner.diffro.weight > 0
