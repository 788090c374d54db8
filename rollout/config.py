"""What a user can set about sampling. Every key is documented here, where it is declared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from speech.runtime.pool_size import PoolSize

Dtype = Literal["float32", "bfloat16"]


@dataclass
class EngineConfig(PoolSize):
    """`engines`: one vLLM engine, and how many the fleet has of them."""

    count: int = field(default=1, metadata={"help": "number of engines at the start", "min": 1})
    min: int | None = field(
        default=None, metadata={"help": "fewest engines to shrink to; null takes `count`: never shrink", "min": 1}
    )
    max: int | None = field(
        default=None, metadata={"help": "most engines to grow to; null takes `count`: never grow", "min": 1}
    )
    heartbeat_s: float = field(default=10.0, metadata={"help": "time between heartbeats of an engine", "min": 0.1})
    heartbeat_timeout_s: float = field(
        default=60.0,
        metadata={
            "help": "an engine that leaves a heartbeat unanswered for so long is killed and replaced; after half of it "
            "the engine gets no new work",
            "min": 0.2,
        },
    )
    max_failures: int = field(
        default=3,
        metadata={"help": "failures of one engine, or engines lost on one prompt, in a row that end the run", "min": 1},
    )
    threads: int = field(default=2, metadata={"help": "OpenMP threads of an engine on CPU", "min": 1})
    dtype: Dtype = field(
        default="float32", metadata={"help": "weights and activations; the learner publishes in this type"}
    )
    max_model_len: int = field(default=1024, metadata={"help": "prompt plus response, in positions", "min": 2})
    max_num_seqs: int = field(default=64, metadata={"help": "samples decoded together", "min": 1})
    max_num_batched_tokens: int = field(
        default=4096, metadata={"help": "positions computed in one engine step", "min": 1}
    )
    kv_cache_gb: float = field(default=1.0, metadata={"help": "key-value cache in GiB, CPU only", "min": 0.01})
    gpu_memory_utilization: float = field(
        default=0.5, metadata={"help": "share of a GPU's memory for weights and key-value cache, GPU only", "min": 0.01}
    )
    enforce_eager: bool = field(default=True, metadata={"help": "run without torch.compile and CUDA graphs"})
    gpus_per_engine: int = field(
        default=0, metadata={"help": "tensor-parallel GPUs of an engine; 0 runs it on the CPU", "min": 0}
    )
    startup_timeout_s: float = field(default=600.0, metadata={"help": "budget to load a model and answer", "min": 1})
    generate_timeout_s: float = field(
        default=1800.0, metadata={"help": "budget of one call that samples groups", "min": 1}
    )
    update_timeout_s: float = field(default=300.0, metadata={"help": "budget of each phase of a publication", "min": 1})


@dataclass
class SamplingConfig:
    """`sampling`. There is no top-p or top-k: truncation would make the sampler another policy than the
    one whose gradient is taken."""

    group_size: int = field(default=8, metadata={"help": "samples per prompt (G)", "min": 1})
    temperature: float = field(
        default=1.0, metadata={"help": "softmax temperature; the learner applies the same", "min": 0.01}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "longest response, stop token included", "min": 1})
    min_new_tokens: int = field(
        default=0,
        metadata={"help": "stop tokens are masked for this many positions, by engine and learner alike", "min": 0},
    )

    def greedy(self) -> SamplingConfig:
        """The same budget decoded greedily, one sample per prompt: what evaluation uses."""
        return replace(self, group_size=1, temperature=0.0)


@dataclass
class EncoderConfig(PoolSize):
    """`encoder`: the audio-encoder actors."""

    count: int = field(default=1, metadata={"help": "number of encoder actors at the start", "min": 1})
    min: int | None = field(
        default=None, metadata={"help": "fewest encoders to shrink to; null takes `count`: never shrink", "min": 1}
    )
    max: int | None = field(
        default=None, metadata={"help": "most encoders to grow to; null takes `count`: never grow", "min": 1}
    )
    threads: int = field(default=1, metadata={"help": "OpenMP threads of an encoder on CPU", "min": 1})
    dtype: Dtype = field(default="float32", metadata={"help": "weights, activations and embeddings"})
    batch_seconds: float = field(
        default=120.0, metadata={"help": "audio seconds per encoder batch, padding to its longest included", "min": 1}
    )
    gpus: float = field(default=0.0, metadata={"help": "GPUs (or a share of one) per encoder actor; 0 = CPU", "min": 0})
