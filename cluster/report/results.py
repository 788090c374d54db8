"""The numbers at the head of a page: what the runs are, and their scores before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.report.runs import STAGES, RunRecord
from cluster.report.utterances import judged

_SCORES: tuple[tuple[str, str, str, int], ...] = (
    ("wer", "WER", "percent", -1),
    ("wer_second", "WER, second judge", "percent", -1),
    ("cer", "CER", "percent", -1),
    ("sentence_error_rate", "sentences with an error", "percent", -1),
    ("sub", "substitutions", "count", -1),
    ("del", "deletions", "count", -1),
    ("ins", "insertions", "count", -1),
    ("wer_mean", "WER, mean of utterances", "percent", -1),
    ("wer_second_mean", "WER, mean of utterances, second judge", "percent", -1),
    ("wer_capped", "WER, failures as silence", "percent", -1),
    ("speaker_similarity", "speaker similarity (SIM-r)", "number", 1),
    ("speaker_similarity_original", "speaker similarity (SIM-o)", "number", 1),
    ("duration_mean", "seconds, mean", "number", 0),
    ("f0_std", "F0 deviation, semitones", "number", 0),
    ("no_stop_rate", "samples without an end", "percent", -1),
    ("failed", "failed samples", "count", -1),
    ("nll", "−log P per character", "number", -1),
    ("impossible", "texts too long for their speech", "percent", -1),
    ("words", "scored words", "count", 0),
    ("utterances", "utterances", "count", 0),
)
"""Key, label, form, and whether more is better (1), worse (-1) or neither."""


@dataclass(frozen=True)
class Cell:
    """A score of one run: as it is written, and whether the change is good, bad or neither (``)."""

    before: str
    after: str
    change: str
    verdict: str


def score_rows(runs: Sequence[RunRecord]) -> list[tuple[str, list[Cell]]]:
    """Label and one cell per run, for every score that a run has."""
    rows = []
    for key, label, form, better in _SCORES:
        pairs = [(run.score("before", key), run.score("after", key)) for run in runs]
        if any(value is not None for pair in pairs for value in pair):
            intervals = [[_interval(run, stage, key) for stage in STAGES] for run in runs]
            cells = [_cell(pair, form, better, interval) for pair, interval in zip(pairs, intervals, strict=True)]
            rows.append((label, cells))
    for code in _languages(runs):
        pairs = [(_of_language(run, "before", code), _of_language(run, "after", code)) for run in runs]
        rows.append((f"WER, {code}", [_cell(pair, "percent", -1, ["", ""]) for pair in pairs]))
    return rows


def judge_rows(run: RunRecord) -> list[tuple[str, list[tuple[int, int, str]], tuple[float, float]]]:
    """Per judge: errors before and after, with the relative change, as S, D, I and all; and both rates."""
    rows = []
    for judge, edits in judged(run).items():
        before, after = edits["before"], edits["after"]
        pairs = [
            (before.substitutions, after.substitutions),
            (before.deletions, after.deletions),
            (before.insertions, after.insertions),
            (before.errors, after.errors),
        ]
        cells = [(old, new, f"{(new - old) / old:+.0%}" if old else "") for old, new in pairs]
        rows.append((judge, cells, (before.rate, after.rate)))
    return rows


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """What a reader wants to know of a run before its curves, as label and text."""
    config, summary = run.config, run.summary
    trained = sum(run.series("time/step"))
    sampling = _section(config, "sampling")
    found = [
        ("status", run.status),
        ("objective", str(config.get("objective", "?"))),
        ("model", str(_section(config, "model").get("path", "?"))),
        ("steps", f"{run.steps[-1] if run.steps else 0:,} of {_number(config.get('steps'))}"),
        (
            "prompts × samples",
            f"{_number(_section(config, 'data').get('batch_prompts'))} × {_number(sampling.get('group_size'))}",
        ),
        ("time in steps", duration(trained)),
        ("samples", _number(summary.get("trajectories") or sum(run.series("rollout/trajectories")))),
        ("tokens", _number(summary.get("tokens") or sum(run.series("rollout/tokens")))),
    ]
    if memory := summary.get("peak_memory_gb"):
        found.append(("peak memory", f"{memory:.1f} GB"))
    return found


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def _cell(pair: tuple[float | None, float | None], form: str, better: int, interval: Sequence[str]) -> Cell:
    before, after = pair
    change = verdict = ""
    if before is not None and after is not None and before != after:
        rise = after - before
        change = f"{rise / abs(before):+.0%}" if before else _written(rise, form, "+")
        verdict = "good" if rise * better > 0 else "bad" if rise * better < 0 else ""
    texts = [
        "–" if value is None else f"{_written(value, form)}{extra}"
        for value, extra in zip((before, after), interval, strict=True)
    ]
    return Cell(texts[0], texts[1], change, verdict)


def _written(value: float, form: str, sign: str = "") -> str:
    match form:
        case "percent":
            return f"{100 * value:{sign}.2f} %"
        case "count":
            return f"{value:{sign},.0f}"
        case _:
            return f"{value:{sign}.3f}"


def _interval(run: RunRecord, stage: str, key: str) -> str:
    low, high = run.score(stage, f"{key}_low"), run.score(stage, f"{key}_high")
    return "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"


def _languages(runs: Sequence[RunRecord]) -> list[str]:
    found = {code for run in runs for stage in STAGES for code in _by_language(run, stage)}
    return sorted(found) if len(found) > 1 else []


def _by_language(run: RunRecord, stage: str) -> Mapping[str, Any]:
    found = run.evaluations.get(stage, {}).get("summary", {}).get("languages")
    return found if isinstance(found, dict) else {}


def _of_language(run: RunRecord, stage: str, code: str) -> float | None:
    value = _by_language(run, stage).get(code, {}).get("wer")
    return float(value) if isinstance(value, int | float) else None


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "?"
