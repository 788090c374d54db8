"""What a user can set about sampling. Every key is documented here, where it is declared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from speech.runtime.pool_size import PoolSize
from speech.runtime.schema import Problems

Dtype = Literal["float32", "bfloat16"]


@dataclass
class EngineConfig(PoolSize):
    """`engines`: one vLLM engine, and how many the fleet has of them."""

    heartbeat_s: Annotated[float, Ge(0.1)] = 10.0
    """Time between heartbeats of an engine."""

    heartbeat_timeout_s: Annotated[float, Ge(0.2)] = 60.0
    """An engine that leaves a heartbeat unanswered for so long is killed and replaced; after half of it the engine gets
    no new work."""

    max_failures: Annotated[int, Ge(1)] = 3
    """Failures of one engine, or engines lost on one prompt, in a row that end the run."""

    threads: Annotated[int, Ge(1)] = 2
    """OpenMP threads of an engine on CPU."""

    dtype: Dtype = "float32"
    """Weights and activations; the learner publishes in this type."""

    lora_rank: Annotated[int, Ge(0), Le(512)] = 0
    """Largest rank of a LoRA adapter (`learner.lora`) that engines take alone; 0 publishes the merged weights."""

    max_model_len: Annotated[int, Ge(2)] = 1024
    """Prompt plus response, in positions."""

    max_num_seqs: Annotated[int, Ge(1)] = 64
    """Samples decoded together."""

    max_num_batched_tokens: Annotated[int, Ge(1)] = 4096
    """Positions computed in one engine step."""

    kv_cache_gb: Annotated[float, Ge(0.01)] = 1.0
    """Key-value cache in GiB, CPU only."""

    gpu_memory_utilization: Annotated[float, Ge(0.01)] = 0.5
    """Share of a GPU's memory for weights and key-value cache, GPU only."""

    enforce_eager: bool = True
    """Run without torch.compile and CUDA graphs."""

    gpus_per_engine: Annotated[int, Ge(0)] = 0
    """Tensor-parallel GPUs of an engine; 0 runs it on the CPU."""

    startup_timeout_s: Annotated[float, Ge(1)] = 600.0
    """Longest time for an actor to load its models and answer: engines, encoders, the codec of
    `token2text`, learner ranks."""

    generate_timeout_s: Annotated[float, Ge(1)] = 1800.0
    """Longest time for one call that samples groups, and for encoding the audio of a step; also for the samples that a
    publication drains, and for a switch between components that share GPUs."""

    update_timeout_s: Annotated[float, Ge(1)] = 300.0
    """Budget of each phase of a publication."""

    def problems(self) -> Problems:
        """What does not go together, for which vLLM, or the engine on it, would refuse to start."""
        found = []
        batched, name = self.max_num_batched_tokens, "max_num_batched_tokens"
        if not self.gpus_per_engine and batched < self.max_model_len:
            found.append((name, f"{batched} must be at least max_model_len={self.max_model_len} on CPU, "
                                "where prompts are computed in one piece"))  # fmt: skip
        if batched < self.max_num_seqs:
            found.append((name, f"{batched} must be at least max_num_seqs={self.max_num_seqs}"))
        return found


def room_complaint(positions: int, new_tokens: int, max_model_len: int) -> str | None:
    """Why a prompt of so many positions leaves no room for its whole response, or None."""
    if positions + new_tokens <= max_model_len:
        return None
    return f"{positions} positions + {new_tokens} new tokens do not fit engines.max_model_len={max_model_len}"


@dataclass
class SamplingConfig:
    """`sampling`. There is no top-p or top-k: truncation would make the sampler another policy than the
    one whose gradient is taken."""

    group_size: Annotated[int, Ge(1)] = 8
    """Samples per prompt (G)."""

    temperature: Annotated[float, Ge(0.01)] = 1.0
    """Softmax temperature; the learner applies the same."""

    max_new_tokens: Annotated[int, Ge(1)] = 64
    """Longest response, stop token included."""

    min_new_tokens: Annotated[int, Ge(0)] = 0
    """Stop tokens are masked for this many positions, by engine and learner alike."""

    def greedy(self) -> SamplingConfig:
        """The same budget decoded greedily, one sample per prompt: what evaluation uses."""
        return replace(self, group_size=1, temperature=0.0)


@dataclass
class EncoderConfig(PoolSize):
    """`encoder`: the audio-encoder actors."""

    threads: Annotated[int, Ge(1)] = 1
    """OpenMP threads of an encoder on CPU."""

    dtype: Dtype = "float32"
    """Weights, activations and embeddings."""

    batch_seconds: Annotated[float, Ge(1)] = 120.0
    """Audio seconds per encoder batch, padding to its longest included."""

    gpus: Annotated[float, Ge(0)] = 0.0
    """GPUs (or a share of one) per encoder actor; 0 = CPU."""
