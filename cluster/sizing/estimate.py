"""What memory a run takes, and what travels at a publication, computed from its configuration and its model's sizes.

The figures of state are exact. Activations are those that autograd keeps of a Qwen3 layer, counted with
`saved_tensors_hooks`; processes are rounded constants. Pure: reads no file and asks no machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.config import RunConfig
from cluster.config.checks import POLICY_OBJECTIVES
from cluster.sizing.shape import ModelShape
from learner.config import SAMPLED_OBJECTIVES

GB = 1e9
LEARNER_PROCESS = 0.68 * GB
"""Python, torch and transformers in a learner rank, measured; taken for encoders and judges too."""
ENGINE_PROCESS, REWARD_PROCESS, CONTROLLER = 1.6 * GB, 0.35 * GB, 1.5 * GB
"""vLLM on a CPU; rules on text; the driver and Ray. Rounded, so that the demo's sum is what it takes (5.3 GB)."""
CUDA_CONTEXT = 0.8 * GB
"""CUDA and NCCL on each GPU: assumed, not measured."""
BYTES = {"float32": 4, "bfloat16": 2}
LINKS = {"10 Gbit/s": 1.25 * GB, "100 Gbit/s": 12.5 * GB}
"""Bandwidths for the time of a publication, in bytes per second."""

Device = Literal["GPU", "host"]


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes, and what they are."""

    what: str
    size: float


@dataclass(frozen=True, slots=True)
class Component:
    """One process of a kind, at its largest.

    Attributes:
        name: of the kind.
        count: how many of them the run starts.
        device: whose memory this is; a component on a GPU has another entry for the host's.
        amounts: held at the same time.
        share: of a GPU that it may fill.
    """

    name: str
    count: int
    device: Device
    amounts: tuple[Amount, ...]
    share: float = 1.0

    @property
    def size(self) -> float:
        return sum(amount.size for amount in self.amounts)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a whole run.

    Attributes:
        components: all of them.
        publication: bytes that every node with engines gets when a version is published; 0 without engines.
        positions: of the largest micro-batch.
        sequence: bytes of the key-value cache of one sequence of `engines.max_model_len`, on each GPU of an engine.
        unknown: what is not counted.
    """

    components: tuple[Component, ...]
    publication: float
    positions: int
    sequence: float
    unknown: tuple[str, ...]

    def host(self) -> float:
        """Host memory of all components together, on however many nodes."""
        return sum(c.size * c.count for c in self.components if c.device == "host")


def estimate(config: RunConfig, shape: ModelShape, files: Mapping[str, int | None]) -> Estimate:
    """The memory of a policy run.

    Args:
        files: bytes of the weights of models that the configuration names, by key; None where they are not here.
    """
    learner, update = _learner(config, shape, files)
    components = [*learner, *_engines(config, shape), *_encoders(config, shape, files), *_rewards(config, files)]
    components.append(Component("controller and Ray", 1, "host", (Amount("processes", CONTROLLER),)))
    dtype = BYTES[config.engines.dtype]
    unknown = [f"{key}: weights are not on this machine" for key, size in files.items() if size is None]
    if "encoder" in config.learner.train:
        unknown.append("activations of the encoder that learns")
    if config.uses_diffro:
        unknown.append("activations of the differentiable reward")
    if config.learner.lora is not None and "adaptor" in config.learner.train:
        unknown.append("adapters of the projector")
    return Estimate(
        components=tuple(components),
        publication=float(shape.language_model * dtype),
        positions=update,
        sequence=_cache(config, shape, config.engines.max_model_len),
        unknown=tuple(unknown),
    )


def activation_bytes(config: RunConfig, shape: ModelShape, positions: int) -> float:
    """What autograd keeps of a micro-batch until its backward pass, without the logits.

    Of each position and layer 6 · hidden + 5 · queries + 4 · keys + 4 · intermediate numbers. On a CPU the responses of
    a group hold copies of their prompt's keys and values besides. Under bfloat16 the norms keep float32, three bytes a
    number on the whole.
    """
    sampling = config.sampling
    on_gpu = config.learner.gpus_per_rank > 0
    layer = 6.0 * shape.hidden + 5 * shape.queries + 4 * shape.keys + 4 * shape.intermediate
    if not on_gpu and config.objective in SAMPLED_OBJECTIVES:
        prompt, response = config.engines.max_model_len - sampling.max_new_tokens, sampling.max_new_tokens
        copies = sampling.group_size * (prompt + response) / (prompt + sampling.group_size * response)
        layer += 2 * shape.keys * copies + shape.queries
    numbers = layer * shape.layers
    if config.learner.activation_checkpointing:
        numbers = shape.layers * shape.hidden + layer
    return positions * (numbers + 4 * shape.hidden) * (3 if on_gpu else 4)


def _learner(config: RunConfig, shape: ModelShape, files: Mapping[str, int | None]) -> tuple[list[Component], int]:
    learner = config.learner
    ranks, on_gpu = learner.ranks, learner.gpus_per_rank > 0
    compute = 2 if on_gpu else 4
    trained = shape.trained(learner.train)
    held = shape.trained(_held(learner.train))
    # The gradients of one group at a time, before they are shared out.
    groups = shape.root + shape.layer
    if learner.lora is not None:
        adapts = "language_model" in learner.train
        adapters = shape.adapters(learner.lora.rank, learner.lora.targets) if adapts else 0
        trained = adapters + shape.trained({"encoder"} & set(learner.train))
        held, groups = held + adapters, trained
    positions = learner.micro_batch_tokens
    if config.objective in SAMPLED_OBJECTIVES:  # a group is not split
        prompt = config.engines.max_model_len - config.sampling.max_new_tokens
        positions = max(positions, prompt + config.sampling.group_size * config.sampling.max_new_tokens)
    sampled = config.objective in SAMPLED_OBJECTIVES
    state = [
        Amount("weights, float32", 4 * held / ranks),
        Amount("gradients, float32", 4 * trained / ranks),
        Amount("Adam's moments, float32", 8 * trained / ranks),
    ]
    if sampled and learner.loss.kl_coef > 0 and learner.lora is None:
        state.append(Amount("reference policy, float32", 4 * held / ranks))
    if (teacher := files.get("learner.distillation.teacher")) is not None:
        state.append(Amount("teacher, float32", teacher / ranks))
    if config.uses_diffro and (reward_model := files.get("learner.diffro.reward_model")) is not None:
        state.append(Amount("Token2Text reward model", float(reward_model)))
    rows = min(learner.logits_chunk, positions)
    update = [
        Amount(f"activations of {positions:,} positions", activation_bytes(config, shape, positions)),
        Amount(f"logits of {rows:,} tokens", rows * shape.vocabulary * (4.0 * 2 + (2 if on_gpu else 0))),
        # The root group stays gathered until its backward pass, a layer is gathered while the next one is fetched.
        Amount("gathered weights", (shape.root + 2 * shape.layer) * compute if ranks > 1 or on_gpu else 0.0),
        Amount("gradients before they are shared out", groups * 4.0 if ranks > 1 else 0.0),
    ]
    copies = []
    if config.checkpoint.asynchronous:
        copies.append(Amount("checkpoint: copy of weights and moments", 12 * trained / ranks))
    process = Amount("process", LEARNER_PROCESS)
    first = [Amount("publication: object store", float(shape.language_model * BYTES[config.engines.dtype]))]
    if ranks > 1 or on_gpu:
        first.append(Amount("checkpoint: whole model", 4.0 * trained))
    besides = Component("learner rank 0, besides", 1, "host", tuple(first))
    held_then = [*state, *(amount for amount in update if amount.size)]
    if not on_gpu:
        return [Component("learner rank", ranks, "host", (*held_then, *copies, process)), besides], positions
    context = Amount("CUDA context", CUDA_CONTEXT)
    return [
        Component("learner rank", ranks, "GPU", (*held_then, context), min(1.0, learner.gpus_per_rank)),
        Component("learner rank", ranks, "host", (*copies, process)),
        besides,
    ], positions


def _held(train: list[Literal["language_model", "adaptor", "encoder"]]) -> set[str]:
    """Parts in the learner: an encoder that learns needs its adaptor there."""
    return {"language_model", *train, *(("adaptor",) if "encoder" in train else ())}


def _cache(config: RunConfig, shape: ModelShape, positions: int) -> float:
    """Bytes of the key-value cache of so many positions, on each GPU of an engine."""
    whole = 2.0 * shape.layers * shape.keys * BYTES[config.engines.dtype] * positions
    return whole / max(1, config.engines.gpus_per_engine)


def _engines(config: RunConfig, shape: ModelShape) -> list[Component]:
    if config.objective not in POLICY_OBJECTIVES:
        return []
    engines = config.engines
    dtype, gpus = BYTES[engines.dtype], engines.gpus_per_engine
    weights = shape.language_model * dtype / max(1, gpus)
    step = engines.max_num_batched_tokens * (4.0 * shape.hidden + 2 * shape.intermediate) * dtype
    logits = engines.max_num_seqs * shape.vocabulary * 4.0 * 2
    held = [Amount(f"weights, {engines.dtype}", weights), Amount("one step and its logits", step + logits)]
    staged = Amount("publication: staged in /dev/shm", float(shape.language_model * dtype))
    if not gpus:
        cache = Amount("key-value cache (engines.kv_cache_gb)", engines.kv_cache_gb * 2**30)
        return [Component("engine", engines.count, "host", (*held, cache, staged, Amount("process", ENGINE_PROCESS)))]
    least = Amount("key-value cache of one sequence, at least", _cache(config, shape, engines.max_model_len))
    context = Amount("CUDA context", CUDA_CONTEXT)
    return [
        Component("engine", engines.count * gpus, "GPU", (*held, least, context), engines.gpu_memory_utilization),
        Component("engine", engines.count, "host", (staged, Amount("process", ENGINE_PROCESS))),
    ]


def _encoders(config: RunConfig, shape: ModelShape, files: Mapping[str, int | None]) -> list[Component]:
    encoder = config.encoder
    if config.model.codec is None:
        weights = Amount(
            f"encoder and adaptor, {encoder.dtype}", (shape.encoder + shape.adaptor) * BYTES[encoder.dtype]
        )
    else:
        weights = Amount("codec", float(files.get("model.codec") or 0))
    process = Amount("process", LEARNER_PROCESS)
    if not encoder.gpus:
        return [Component("encoder", encoder.count, "host", (weights, process))]
    context = Amount("CUDA context", CUDA_CONTEXT)
    return [
        Component("encoder", encoder.count, "GPU", (weights, context), min(1.0, encoder.gpus)),
        Component("encoder", encoder.count, "host", (process,)),
    ]


def _rewards(config: RunConfig, files: Mapping[str, int | None]) -> list[Component]:
    if config.objective not in SAMPLED_OBJECTIVES:
        return []
    judges = sum(float(files.get(key) or 0) for key in ("rewards.sound.judge.path", "rewards.sound.speaker.path"))
    process = LEARNER_PROCESS if config.model.codec is not None else REWARD_PROCESS
    models = [Amount("judge and speaker model", judges)] if judges else []
    return [Component("reward actor", config.rewards.count, "host", (*models, Amount("process", process)))]
