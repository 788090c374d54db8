"""What is printed at the end: scores of a run or of one manifest, and transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance's reference and transcripts; `before` or `after` is None where that was not evaluated."""

    reference: str
    before: str | None
    after: str | None


def print_summary(
    summary: Mapping[str, Any], examples: Sequence[Example], folder: Path, console: Console | None = None
) -> None:
    """Print a run's result.

    Args:
        summary: as in `summary.json`; `before` and `after` are mappings with `wer`, `cer` (shares), `sub`, `del`,
            `ins`, `words`, `utterances` (counts) and optionally `wer_low`, `wer_high` (confidence interval), or None.
        examples: transcripts to show.
        folder: the run's folder.
        console: where to print; stdout by default.
    """
    console = console or Console()
    scores = [(label, summary.get(label)) for label in ("before", "after")]
    speech = any(score is not None and "wer_second" in score for _, score in scores)
    title = "test split, greedy decoding"
    table = _speech_table(title) if speech else _score_table(title)
    for label, score in scores:
        if score is not None:
            _add_rows(table, label, score, speech)
    if table.row_count:
        console.print(table)
    before, after = scores[0][1], scores[1][1]
    if before is not None and after is not None:
        for label, old, new in (
            ("WER", before, after),
            ("WER of samples", before.get("sampled", {}), after.get("sampled", {})),
        ):
            if old.get("wer") and new.get("wer") is not None:
                console.print(f"{label} changed by {new['wer'] / old['wer'] - 1:+.1%} relative", highlight=False)
    for example in examples:
        rows = [("reference", example.reference), ("before", example.before), ("after", example.after)]
        console.print()
        for label, text in rows:
            if text is not None:
                console.print(f"  [dim]{label:<9}[/]  {escape(text) or '[dim](nothing)'}", highlight=False)
    console.print()
    console.print(
        f"{summary.get('status', 'finished')} after {summary.get('steps', 0)} steps, "
        f"{float(summary.get('seconds', 0.0)):.0f} s; results in [bold]{escape(str(folder))}[/]",
        highlight=False,
        soft_wrap=True,
    )


def print_evaluation(
    summary: Mapping[str, Any], skipped: int, hypotheses: Path, console: Console | None = None
) -> None:
    """Print the scores of one manifest, per language and overall.

    Args:
        summary: scores as in `print_summary`, with `languages` holding the same per language code.
        skipped: bad lines of the manifest that were left out.
        hypotheses: where the transcripts were written.
        console: where to print; stdout by default.
    """
    console = console or Console()
    speech = "wer_second" in summary
    table = (_speech_table if speech else _score_table)("greedy decoding")
    languages: Mapping[str, Any] = summary.get("languages", {})
    if len(languages) > 1:
        for code, score in languages.items():
            table.add_row(escape(code), *_score_cells(score))
        table.add_section()
    label = "overall" if len(languages) != 1 else escape(next(iter(languages)))
    _add_rows(table, label, summary, speech)
    console.print(table)
    if skipped:
        console.print(f"{skipped:,} bad lines of the manifest were left out", highlight=False)
    console.print(f"hypotheses in [bold]{escape(str(hypotheses))}[/]", highlight=False, soft_wrap=True)


def _add_rows(table: Table, label: str, score: Mapping[str, Any], speech: bool) -> None:
    """The greedy figures, and below them those of one sample per utterance where there are some."""
    cells = _speech_cells if speech else _score_cells
    table.add_row(label, *cells(score))
    if "sampled" in score:
        table.add_row("  sampled", *cells(score["sampled"]))


def _score_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))  # 80 columns
    for column in ("", "WER", "95 % interval", "CER", "sub", "del", "ins", "words", "utterances"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


_SPEECH_COLUMNS = (
    ("WER", "wer", "{:.2%}"),
    ("mean", "wer_mean", "{:.2%}"),
    ("second", "wer_second", "{:.2%}"),
    ("mean", "wer_second_mean", "{:.2%}"),
    ("cosine", "speaker_similarity", "{:.3f}"),
    ("seconds", "duration_mean", "{:.2f}"),
    ("no stop", "no_stop_rate", "{:.1%}"),
    ("texts", "utterances", "{:,}"),
)
"""WER of the training judge, then of the second; `mean` is over utterances (seed-tts-eval), the figure before it of the
whole corpus; `cosine` is speaker similarity."""


def _speech_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for column in ("", *(name for name, _, _ in _SPEECH_COLUMNS)):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _speech_cells(score: Mapping[str, Any]) -> list[str]:
    return ["–" if score[key] is None else form.format(score[key]) for _, key, form in _SPEECH_COLUMNS]


def _score_cells(score: Mapping[str, Any]) -> list[str]:
    interval = f"{100 * score['wer_low']:.1f} – {score['wer_high']:.1%}" if "wer_low" in score else ""
    counts = [f"{score[key]:,}" for key in ("sub", "del", "ins", "words", "utterances")]
    return [f"{score['wer']:.2%}", interval, f"{score['cer']:.2%}", *counts]
