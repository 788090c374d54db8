"""Groups of some steps, with what the policy is taught by them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.report.runs import RunRecord
from cluster.report.utterances import aligned
from cluster.runs import durable
from learner.batches.advantage import compute_batch_advantages
from learner.registries import ADVANTAGES
from speech.errors import UserError

STEPS = 12
"""Steps whose groups stand on a page, of all runs together."""
GROUPS = 48
"""Groups of a step, at most."""

Line = Mapping[str, Any]


def read_steps(run: RunRecord, count: int) -> dict[int, list[Line]]:
    """Groups of the first, the last and evenly many steps between them; a file that cannot be read is left out."""
    folder = run.path / "rollouts"
    steps = [step for step in run.steps if (folder / f"step-{step:06d}.jsonl").is_file()]
    if not steps:
        return {}
    last = len(steps) - 1
    chosen = {steps[round(i * last / max(1, count - 1))] for i in range(count)}
    found: dict[int, list[Line]] = {}
    for step in sorted(chosen):
        try:
            found[step] = [line for line in durable.read(folder / f"step-{step:06d}.jsonl") if line.get("samples")]
        except UserError:
            continue
    return found


def part_shares(run: RunRecord, steps: Mapping[int, Sequence[Line]]) -> dict[str, float]:
    """Of each part of the reward, its share of what rewards differ by inside groups.

    It is cov(w · part, total) / var(total) inside groups, over all of them; the shares add up to 1. Empty when no group
    has samples that differ.
    """
    weights, normalised = _weights(run)
    shared: dict[str, float] = {}
    whole = 0.0
    for line in (line for lines in steps.values() for line in lines):
        samples = [
            sample["parts"] for sample in line["samples"] if sample.get("reward") is not None and sample["parts"]
        ]
        if len(samples) < 2:
            continue
        columns = {}
        for name in samples[0]:
            values = [weights.get(name, 1.0) * float(parts.get(name, 0.0)) for parts in samples]
            mean = statistics.fmean(values)
            spread = statistics.pstdev(values) if normalised else 1.0
            scale = abs(weights.get(name, 1.0)) / spread if normalised and spread > 0 else 1.0
            columns[name] = [(value - mean) * scale for value in values]
        totals = [sum(column[i] for column in columns.values()) for i in range(len(samples))]
        whole += sum(total**2 for total in totals)
        for name, column in columns.items():
            shared[name] = shared.get(name, 0.0) + sum(a * b for a, b in zip(column, totals, strict=True))
    return {name: share / whole for name, share in shared.items()} if whole > 0 else {}


def group_payload(runs: Sequence[RunRecord], steps: Sequence[Mapping[int, Sequence[Line]]]) -> list[dict[str, Any]]:
    """What the page's script shows, per run.

    `parts`: names with weights; `estimator`: of the advantages; `steps`: per step its groups, with `prompt`,
    `reference`, `lang`, `seconds`, `outcome` of the ledger, `spread` of the rewards, and `samples`: best first, equal
    ones once with their `count`.
    """
    found = []
    for run, of_run in zip(runs, steps, strict=True):
        outcomes = _outcomes(run) if of_run else {}
        weights, _ = _weights(run)
        names = list(
            dict.fromkeys(n for ls in of_run.values() for line in ls for s in line["samples"] for n in s["parts"])
        )
        estimator = _estimator(run)
        found.append(
            {
                "estimator": estimator or "reward less the group's mean",
                "parts": [[name, weights.get(name, 1.0)] for name in names],
                "steps": {
                    step: _step(lines[:GROUPS], names, estimator, outcomes.get(step, {}))
                    for step, lines in of_run.items()
                },
            }
        )
    return found


def _step(
    lines: Sequence[Line], parts: Sequence[str], estimator: str | None, outcomes: Mapping[str, str]
) -> list[dict[str, Any]]:
    rewards = [[sample.get("reward") for sample in line["samples"]] for line in lines]
    scored = [([0.0 if r is None else r for r in its], [r is not None for r in its]) for its in rewards]
    advantages = compute_batch_advantages(estimator or "group_mean", scored)
    return [
        _group(line, [float(a) for a in its], parts, outcomes.get(str(line["prompt"])))
        for line, its in zip(lines, advantages, strict=True)
    ]


def _group(line: Line, advantages: Sequence[float], parts: Sequence[str], outcome: str | None) -> dict[str, Any]:
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for sample, advantage in zip(line["samples"], advantages, strict=True):
        reward = sample.get("reward")
        values = [sample["parts"].get(name) for name in parts]
        cut = sample.get("finish_reason") == "length"
        key = (sample["text"], reward, *values, cut, sample.get("invalid"), None if sample["text"] else sample["seed"])
        if key in merged:
            merged[key]["count"] += 1
            continue
        merged[key] = {
            "words": aligned(line["reference"], sample["text"], line.get("language")) if sample["text"] else None,
            "edits": _edits(sample),
            "reward": reward,
            "advantage": round(advantage, 4),
            "parts": [None if value is None else round(float(value), 4) for value in values],
            "tokens": sample["tokens"],
            "cut": cut,
            "invalid": sample.get("invalid"),
            "count": 1,
        }
    valid = [sample["reward"] for sample in line["samples"] if sample.get("reward") is not None]
    samples = sorted(merged.values(), key=lambda sample: -(sample["reward"] if sample["reward"] is not None else -1e9))
    return {
        "prompt": line["prompt"],
        "reference": line["reference"],
        "lang": line.get("language"),
        "seconds": line.get("seconds"),
        "outcome": outcome,
        "spread": statistics.pstdev(valid) if len(valid) > 1 else 0.0,
        "samples": samples,
    }


def _edits(sample: Line) -> list[float] | None:
    """S, D and I of a sample, where a reward counted them: of speech there is no transcript."""
    details = sample.get("details", {})
    prefix = next((key.removesuffix("substitutions") for key in details if key.endswith("/substitutions")), None)
    return prefix and [details.get(prefix + kind, 0.0) for kind in ("substitutions", "deletions", "insertions")]


def _weights(run: RunRecord) -> tuple[dict[str, float], bool]:
    """Weights of the rewards by name, and whether each is normalised in its group first."""
    rewards = run.config.get("rewards") or {}
    items = [item for item in rewards.get("items") or () if isinstance(item, dict)]
    return {str(i.get("name")): float(i.get("weight", 1.0)) for i in items}, bool(rewards.get("normalise_parts"))


def _estimator(run: RunRecord) -> str | None:
    """The run's own estimator; None for one of the user's, since a report runs no code that a run's folder names."""
    name = (run.config.get("learner") or {}).get("advantage")
    if not isinstance(name, str) or ":" in name:
        return None
    try:
        ADVANTAGES.find(name)
    except UserError:
        return None
    return name


def _outcomes(run: RunRecord) -> dict[int, dict[str, str]]:
    """By step and prompt: `trained`, or why it was rejected."""
    found: dict[int, dict[str, str]] = {}
    for line in durable.read(run.path / "ledger.jsonl"):
        text = "trained" if line.get("outcome") == "trained" else f"rejected: {line.get('reason')}"
        found.setdefault(int(line["step"]), {})[str(line["prompt"])] = text
    return found
