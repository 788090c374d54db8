"""Adding up a step's metrics over micro-batches, updates and ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist

from learner.batches.batch import PackedBatch

Metrics = dict[str, torch.Tensor]


def reduce_metrics(parts: Iterable[Mapping[str, torch.Tensor]]) -> Metrics:
    """Merge the metrics of micro-batches or ranks: names ending in `_max` by maximum, all others by sum."""
    merged: Metrics = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            else:
                merged[name] = torch.maximum(merged[name], value) if name.endswith("_max") else merged[name] + value
    return merged


def summarise_metrics(merged: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Merged sums over a batch → means per token, maxima, the number of tokens, and the effective sample size.

    Losses that count whole samples give `samples` in place of `tokens`, and get means per sample. Metrics with a count
    of their own get means per that. Of nothing there is no mean.

    `importance_ess` is (Σw)² / (n · Σw²) of the importance weights learner / engine, in (0, 1]: 1 when both agree on
    every token.
    """
    unit = "tokens" if "tokens" in merged else "samples"
    tokens = float(merged[unit])
    summary = {unit: tokens}
    for name, value in merged.items():
        count = float(merged.get(f"{name}_count", tokens))
        if count == 0 or name in (unit, "importance_squared") or name.endswith("_count"):
            continue
        summary[name] = float(value) if name.endswith("_max") else float(value) / count
    if "importance_squared" in merged and tokens > 0:
        summary["importance_ess"] = float(merged["importance"]) ** 2 / (tokens * float(merged["importance_squared"]))
    return summary


class StepMetrics:
    """Collects the losses' metrics by the prefix under which they are logged (`learner`, `replay`, `diffro`)."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Metrics]] = defaultdict(list)
        self.grad_norm = 0.0
        self.gaps: dict[int, list[float]] = defaultdict(list)

    def add(self, metrics: Mapping[str, Metrics]) -> None:
        for prefix, sums in metrics.items():
            self.parts[prefix].append({name: value.detach().cpu().double() for name, value in sums.items()})

    def add_gaps(self, batch: PackedBatch, gaps: torch.Tensor) -> None:
        """Note each sample's largest |learner − engine| log-prob, in nats.

        Args:
            gaps: (S,) in the order of the batch's samples.
        """
        values = iter(gaps.tolist())
        for index, block in zip(batch.audio, batch.blocks, strict=True):
            self.gaps[index] += [next(values) for _ in block.responses]

    def sample_gaps(self) -> dict[int, list[float]]:
        """Gaps by audio index, in the order of the group's samples, over all ranks. A collective."""
        gathered: list[dict[int, list[float]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, dict(self.gaps))
        return {index: gaps for part in gathered for index, gaps in part.items()}

    def result(self) -> dict[str, float]:
        """Means per token (DiffRO: per sample) and maxima, over all ranks. A collective."""
        mine = {prefix: reduce_metrics(parts) for prefix, parts in self.parts.items()}
        gathered: list[dict[str, Metrics]] = [{} for _ in range(dist.get_world_size())]
        # Objects, because a rank that only had dummy micro-batches has no metrics at all.
        dist.all_gather_object(gathered, mine)
        results = {"learner/grad_norm": self.grad_norm}
        for prefix in sorted({prefix for metrics in gathered for prefix in metrics}):
            merged = reduce_metrics([metrics[prefix] for metrics in gathered if prefix in metrics])
            results |= {f"{prefix}/{name}": value for name, value in summarise_metrics(merged).items()}
        return results
