"""What is printed at the end: scores of a run or of one manifest, and transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.evaluation.result import Decoding
from cluster.evaluation.scores import SAMPLED, Scores


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance's reference and transcripts; `before` or `after` is None where that was not evaluated."""

    reference: str
    before: str | None
    after: str | None


def print_run(
    before: Scores | None,
    after: Scores | None,
    examples: Sequence[Example],
    status: str,
    steps: int,
    seconds: float,
    folder: Path,
    console: Console | None = None,
) -> None:
    """Print a run's result.

    Args:
        before, after: scores of the test split; None where it was not evaluated.
        examples: transcripts to show.
        status, steps, seconds: how the run ended, after how many steps, and its time of training.
        folder: the run's folder.
        console: where to print; stdout by default.
    """
    console = console or Console()
    known = [(label, scores) for label, scores in (("before", before), ("after", after)) if scores is not None]
    if known:
        table = _table("test split, greedy decoding", known[0][1])
        for label, scores in known:
            _add_rows(table, label, scores)
        console.print(table)
    if before is not None and after is not None:
        old, new = before.metrics(), after.metrics()
        for label, name in (("WER", "wer"), ("WER of samples", f"{SAMPLED}/wer")):
            if old.get(name) and name in new:
                console.print(f"{label} changed by {new[name] / old[name] - 1:+.1%} relative", highlight=False)
    for example in examples:
        rows = [("reference", example.reference), ("before", example.before), ("after", example.after)]
        console.print()
        for label, text in rows:
            if text is not None:
                console.print(f"  [dim]{label:<9}[/]  {escape(text) or '[dim](nothing)'}", highlight=False)
    console.print()
    console.print(
        f"{status} after {steps} steps, {seconds:.0f} s; results in [bold]{escape(str(folder))}[/]",
        highlight=False,
        soft_wrap=True,
    )


def print_evaluation(
    scores: Scores,
    skipped: int,
    hypotheses: Path,
    decoding: Decoding | None = None,
    console: Console | None = None,
) -> None:
    """Print the scores of one manifest, per language and overall.

    Args:
        skipped: bad lines of the manifest that were left out.
        hypotheses: where the transcripts were written.
        decoding: how long it took, where that was measured.
        console: where to print; stdout by default.
    """
    console = console or Console()
    table = _table("greedy decoding", scores)
    languages = scores.languages_cells()
    if len(languages) > 1:
        for code, cells in languages.items():
            table.add_row(escape(code), *cells)
        table.add_section()
    label = "overall" if len(languages) != 1 else escape(next(iter(languages)))
    _add_rows(table, label, scores)
    console.print(table)
    for note in scores.notes():
        console.print(note, markup=False, highlight=False)
    if decoding is not None and decoding.rtf is not None:
        took = f"{decoding.seconds:.1f} s for {decoding.audio_seconds:.1f} s of audio"
        console.print(f"real-time factor of the decoding: {decoding.rtf:.3f} ({took})", highlight=False)
    if skipped:
        console.print(f"{skipped:,} bad lines of the manifest were left out", highlight=False)
    console.print(f"hypotheses in [bold]{escape(str(hypotheses))}[/]", highlight=False, soft_wrap=True)


def _table(title: str, scores: Scores) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))  # 80 columns
    for column in ("", *scores.headings):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _add_rows(table: Table, label: str, scores: Scores) -> None:
    """The greedy figures, and below them those of one sample per utterance where there are some."""
    table.add_row(label, *scores.cells())
    if scores.sampled is not None:
        table.add_row(f"  {SAMPLED}", *scores.sampled.cells())
