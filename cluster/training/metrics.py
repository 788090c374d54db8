"""What a step and a run report: numbers for `metrics.jsonl`, `summary.json` and TensorBoard."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.evaluation.scores import Scores
from speech.edits import EditCounts, word_edits
from speech.records import Group

if TYPE_CHECKING:  # they load Ray
    from cluster.fleet.fleet import FleetCounts
    from cluster.training.batch import Step, TrainingBatch
    from rollout.engine.stats import EngineStats

REJECTED_SHOWN = 10
"""Rejected prompts that a summary names; the ledger names all."""


def step_metrics(
    step: Step, before: EngineStats, after: EngineStats, engines: int, encoded: int, retried: int
) -> dict[str, float]:
    """Everything about a step but its times.

    Args:
        before, after: the fleet's totals around the step.
        engines: how many there are.
        encoded: utterances that the encoders processed in the step.
        retried: groups whose scoring was tried again since the run started, after a time-out or a lost actor.
    """
    batch = step.batch
    metrics: dict[str, float] = {"version": float(step.version), "rollout/encoded_utterances": float(encoded)}
    metrics["rollout/audio_seconds"] = sum(item.seconds for item in batch.audio)
    metrics["data/rejected"] = float(len(batch.bad))
    if batch.groups:
        metrics |= _rollout_metrics(batch.groups, step.version)
        metrics |= _reward_metrics(batch)
        metrics["reward/retried_total"] = float(retried)
        queries = after.prefix_queries - before.prefix_queries
        hits = after.prefix_hits - before.prefix_hits
        metrics["rollout/prefix_hit_rate"] = hits / queries if queries else 0.0
    if after.wake_seconds:
        metrics["time/wake"] = (after.wake_seconds - before.wake_seconds) / engines
    learner = dict(step.metrics)
    for name, key in (("learner/logprob_gap", "logprob_gap/mean"), ("learner/logprob_gap_max", "logprob_gap/max")):
        if name in learner:
            metrics[key] = learner.pop(name)
    return metrics | learner


def fleet_metrics(before: FleetCounts, after: FleetCounts, pools: Mapping[str, int]) -> dict[str, float]:
    """Engines that serve and that do not yet, and the sizes of the pools, at the end of a step; restarts and prompts
    given out again in it."""
    return {
        "fleet/healthy": float(after.healthy),
        "fleet/stale": float(after.stale),
        "fleet/restarts": float(after.restarts - before.restarts),
        "fleet/reissued": float(after.reissued - before.reissued),
        **{f"fleet/{name}": float(size) for name, size in pools.items()},
    }


def _rollout_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    trajectories = [t for group in groups for t in group.trajectories]
    lengths = [len(t.token_ids) for t in trajectories]
    # Of speech the reward's judge says what was heard; its error rate is among the reward's details.
    speech = any(t.speech_tokens for t in trajectories)
    edits = sum(
        (
            word_edits(g.prompt.utterance.text, t.text, g.prompt.utterance.language)
            for g in groups
            for t in g.trajectories
        ),
        EditCounts(),
    )
    # The version counted here is the one after this step's update.
    ages = [max(0, version - 1 - t.version_first) for t in trajectories]
    return {
        "rollout/trajectories": float(len(trajectories)),
        "rollout/tokens": float(sum(lengths)),
        "rollout/length_mean": statistics.fmean(lengths),
        "rollout/no_stop_share": sum(t.finish_reason != "stop" for t in trajectories) / len(trajectories),
        **({} if speech else {"rollout/wer": edits.rate}),
        "staleness/mean": statistics.fmean(ages),
        "staleness/max": float(max(ages)),
        **{f"staleness/{age}": float(count) for age, count in sorted(Counter(ages).items())},
    }


def _reward_metrics(batch: TrainingBatch) -> dict[str, float]:
    rewards = [reward for group in batch.groups for reward in group.rewards]
    valid = [reward for reward in rewards if reward.total is not None]
    totals = [reward.total for reward in valid if reward.total is not None]
    metrics = {
        "reward/invalid": float(len(rewards) - len(valid)),
        "reward/zero_variance_share": batch.selection.zero_variance / len(batch.groups),
        "reward/groups_trained": float(len(batch.selection.groups)),
    }
    if totals:
        metrics["reward/mean"] = statistics.fmean(totals)
        metrics["reward/std"] = statistics.pstdev(totals)
    for prefix, values in (("reward_part", [r.parts for r in valid]), ("reward_detail", [r.details for r in valid])):
        for name in sorted({name for value in values for name in value}):
            known = [value[name] for value in values if name in value]
            metrics[f"{prefix}/{name}"] = statistics.fmean(known)
    return metrics


def aligned_gaps(batch: TrainingBatch, sample_gaps: Mapping[int, list[float]]) -> list[list[float | None]]:
    """The learner's per-sample gaps, in the order of the batch's groups and trajectories; None where a sample was
    not trained."""
    aligned: list[list[float | None]] = []
    for index, group in enumerate(batch.groups):
        seen = iter(sample_gaps.get(index, []))
        trained = [r.valid and bool(t.token_ids) for r, t in zip(group.rewards, group.trajectories, strict=True)]
        aligned.append([next(seen, None) if ok else None for ok in trained])
    return aligned


def summarise(
    *,
    status: str,
    metrics: Sequence[Mapping[str, float]],
    seconds: float,
    before: Scores | None,
    after: Scores | None,
    peak_bytes: int,
    skipped: Mapping[str, int],
    rejected: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The content of `summary.json`, over all executions of the run.

    Args:
        metrics: the lines of `metrics.jsonl`.
        seconds: wall time of the training part.
        before, after: scores of the test split; None where it was not evaluated.
        skipped: manifest lines left out, by split.
        rejected: (prompt id, reason) of the prompts with bad utterances.
    """

    def column(name: str) -> list[float]:
        return [line[name] for line in metrics if line.get(name) is not None]

    rewards, steps = column("reward/mean"), column("time/step")
    # The publication before the first step is not in the metrics; these are the steps' own.
    publications, gaps = column("time/publish"), column("logprob_gap/max")
    return {
        "status": status,
        "steps": len(metrics),
        "seconds": seconds,
        "version": int(metrics[-1].get("version", 0)) if metrics else 0,
        "before": None if before is None else before.to_json(),
        "after": None if after is None else after.to_json(),
        "reward_first": rewards[0] if rewards else None,
        "reward_last": rewards[-1] if rewards else None,
        "trajectories": int(sum(column("rollout/trajectories"))),
        "tokens": int(sum(column("rollout/tokens"))),
        "audio_seconds": sum(column("rollout/audio_seconds")),
        "logprob_gap_mean": statistics.fmean(column("logprob_gap/mean")) if gaps else None,
        "logprob_gap_max": max(gaps) if gaps else None,
        "publish_seconds_mean": statistics.fmean(publications) if publications else None,
        "idle_fraction": _weighted_mean(column("time/idle_fraction"), steps),
        "peak_memory_gb": peak_bytes / 1e9,
        "skipped": dict(skipped),
        "rejected": {"count": len(rejected), "first": dict(rejected[:REJECTED_SHOWN])},
    }


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    if not values or not sum(weights):
        return None
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def sample_text(group: Group) -> str:
    """A group as a Markdown table, for TensorBoard."""
    rows = [f"**{group.prompt.utterance.text}**", "", "| reward | finish | transcript |", "|---|---|---|"]
    for trajectory, reward in zip(group.trajectories, group.rewards, strict=True):
        total = "invalid" if reward.total is None else f"{reward.total:.3f}"
        rows.append(f"| {total} | {trajectory.finish_reason} | {trajectory.text} |")
    return "\n".join(rows)


def sample_table(group: Group) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the same, for trackers."""
    rows: list[list[Any]] = [
        [group.prompt.utterance.text, trajectory.text, reward.total, trajectory.finish_reason]
        for trajectory, reward in zip(group.trajectories, group.rewards, strict=True)
    ]
    return ["reference", "transcript", "reward", "finish"], rows
