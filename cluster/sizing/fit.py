"""Whether an estimate fits what there is, and which keys would make it fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config import RunConfig
from cluster.preflight import gpus_wanted
from cluster.sizing.estimate import Estimate


@dataclass(frozen=True, slots=True)
class Shortage:
    """Something that does not fit.

    Attributes:
        what: is too large, for messages.
        needs, has: bytes, or GPUs.
        section: of the configuration in which it can be made smaller.
    """

    what: str
    needs: float
    has: float
    section: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """One key with another value.

    Attributes:
        saves: bytes of what does not fit.
        fits: whether nothing is short then.
    """

    key: str
    value: Any
    saves: float
    fits: bool


def shortages(config: RunConfig, found: Estimate, gpus: int | None, memory: float | None) -> list[Shortage]:
    """What does not fit.

    Args:
        gpus: of the cluster; None does not ask.
        memory: bytes of each GPU, or of the machine where the run asks for none; None does not ask.
    """
    short = []
    wanted = sum(gpus_wanted(config, training=True).values())
    if gpus is not None and wanted > gpus:
        short.append(Shortage("GPUs", wanted, gpus, "engines.count, learner.ranks"))
    if memory is None:
        return short
    on_gpus = [c for c in found.components if c.device == "GPU"]
    for component in on_gpus:
        if component.size > memory * component.share:
            section = {"engine": "engines", "encoder": "encoder"}.get(component.name, "learner")
            short.append(Shortage(f"{component.name} on its GPU", component.size, memory * component.share, section))
    if not on_gpus and found.host() > memory:
        short.append(Shortage("all processes on one machine", found.host(), memory, ""))
    return short


def remedies(
    config: RunConfig, short: Shortage, measure: Callable[[RunConfig], Estimate], gpus: int | None, memory: float | None
) -> list[Remedy]:
    """Keys that make it smaller, the largest saving first.

    Args:
        measure: the estimate of a changed configuration.
    """
    found = []
    for key, value in _changes(config):
        if not key.startswith(short.section.split(",")[0]) and short.section:
            continue
        changed = copy.deepcopy(config)
        *path, last = key.split(".")
        section: Any = changed
        for name in path:
            section = getattr(section, name)
        setattr(section, last, value)
        left = shortages(changed, measure(changed), gpus, memory)
        same = next((s for s in left if s.what == short.what), None)
        # A larger share of a GPU is as good as fewer bytes on it.
        missing = 0.0 if same is None else same.needs - same.has
        saves = short.needs - short.has - missing
        if saves > 0.01 * short.needs or same is None:
            found.append(Remedy(key, value, saves, not left))
    return sorted(found, key=lambda remedy: (not remedy.fits, -remedy.saves))


def _changes(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Keys that trade memory for time, or for more devices, with the next smaller value."""
    learner, engines = config.learner, config.engines
    if not learner.activation_checkpointing:
        yield "learner.activation_checkpointing", True
    yield "learner.micro_batch_tokens", max(1, learner.micro_batch_tokens // 2)
    yield "learner.logits_chunk", max(1, learner.logits_chunk // 4)
    yield "learner.ranks", learner.ranks * 2
    if learner.loss.kl_coef:
        yield "learner.loss.kl_coef", 0.0
    if config.checkpoint.asynchronous:
        yield "checkpoint.asynchronous", False
    if engines.dtype == "float32":
        yield "engines.dtype", "bfloat16"
    yield "engines.max_num_batched_tokens", max(engines.max_model_len, engines.max_num_batched_tokens // 2)
    if engines.gpus_per_engine:
        yield "engines.gpus_per_engine", engines.gpus_per_engine * 2
        if config.placement == "disaggregated":
            yield "engines.gpu_memory_utilization", 0.9
    else:
        yield "engines.kv_cache_gb", engines.kv_cache_gb / 2
    if config.encoder.dtype == "float32":
        yield "encoder.dtype", "bfloat16"
