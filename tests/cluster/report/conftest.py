"""Small run folders, written by the project's own writers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_config
from cluster.evaluation.result import Evaluation, store_evaluation
from cluster.evaluation.speech import report_of, speech_scores
from cluster.evaluation.transcripts import transcript_scores
from cluster.runs.folder import RunFolder
from cluster.runs.ledger import LedgerEntry
from speech.records import Group, Prompt, PromptLayout, Reward, Trajectory, Utterance

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes `runs/<name>` and returns it; see `_write`."""

    def write(name: str = "r", **options: Any) -> Path:
        return _write(tmp_path / "runs", name, **options)

    return write


def _write(
    root: Path,
    name: str,
    *,
    metrics: Sequence[Mapping[str, float]] = ({"reward/mean": 0.25, "time/step": 2.0},) * 3,
    before: Sequence[Mapping[str, Any]] = (),
    after: Sequence[Mapping[str, Any]] = (),
    groups: Mapping[int, Sequence[Group]] | None = None,
    ledger: Sequence[LedgerEntry] = (),
    overrides: Sequence[str] = (),
    status: str | None = "completed",
) -> Path:
    """A run's folder.

    Args:
        metrics: of each step.
        before, after: lines of the evaluations; none writes no evaluation.
        groups: by step.
        status: None leaves the run unfinished.
    """
    config = load_config(None, [f"name={name}", "model.path=m", "data.train=t.jsonl", "steps=3", *overrides])
    with RunFolder(root, name) as folder:
        folder.open(config)
        folder.rewind(None)
        for step, values in enumerate(metrics, 1):
            folder.metrics(step, values)
        for step, its in (groups or {}).items():
            folder.rollouts(step, its)
        folder.ledger.append(1, ledger)
        for stage, lines in (("before", before), ("after", after)):
            if lines:
                speaks = "hypothesis_second" in lines[0]
                scores = speech_scores([report_of(line) for line in lines]) if speaks else transcript_scores(lines)
                evaluation = Evaluation(scores, [dict(line) for line in lines])
                store_evaluation(folder.path / f"evaluation-{stage}.json", evaluation, {})
        if status is not None:
            folder.summary({"status": status, "steps": len(metrics)})
    return root / name


def heard(name: str, reference: str, hypothesis: str, **more: Any) -> dict[str, Any]:
    """A line of the evaluation of a model that hears."""
    line = {"id": name, "audio": "", "seconds": 1.5, "language": "en", "reference": reference}
    return {**line, "hypothesis": hypothesis, "finish_reason": "stop", **more}


def said(name: str, reference: str, first: str, second: str, **more: Any) -> dict[str, Any]:
    """A line of the evaluation of a model that speaks, as both judges heard it."""
    line = {"id": name, "language": "en", "reference": reference, "hypothesis": first, "hypothesis_second": second}
    line |= {"wer": 0.0, "wer_second": 0.0, "speaker_similarity": 0.8, "seconds": 1.0, "finished": True}
    return {**line, "wave": None, "problems": [], **more}


def group(name: str, reference: str, samples: Sequence[tuple[str, Mapping[str, float] | None]]) -> Group:
    """A scored group; a sample is its text and its parts, or None for an invalid one."""
    utterance = Utterance(id=name, audio=f"/gone/{name}.opus", text=reference, language="en")
    trajectories = tuple(
        Trajectory(
            prompt_id=f"0/{name}",
            index=i,
            token_ids=(5, 6, 2),
            logprobs=(-0.1, -0.2, -0.3),
            version_first=0,
            version_last=0,
            finish_reason="stop",
            seed=i,
            text=text,
        )
        for i, (text, _) in enumerate(samples)
    )
    rewards = tuple(
        Reward(total=None, invalid="judge timed out")
        if parts is None
        else Reward(total=sum(parts.values()), parts=parts)
        for _, parts in samples
    )
    prompt = Prompt(id=f"0/{name}", utterance=utterance, epoch=0, position=0, seed=7)
    return Group(prompt, PromptLayout((1, 0, 0, 2), 1, 2), trajectories, 1.5, 0.4, rewards)
