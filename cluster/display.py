"""What a user sees: live progress in a terminal, plain lines elsewhere, and the result at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

SHOWN: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward/mean", "{:.3f}"),
    ("WER", "rollout/wer", "{:.1%}"),
    ("nll", "learner/nll", "{:.3f}"),
    ("entropy", "learner/entropy", "{:.3f}"),
    ("max gap", "logprob_gap/max", "{:.1e}"),
    ("version", "version", "{:.0f}"),
    ("tokens/s", "time/tokens_per_second", "{:,.0f}"),
)
"""(label, metric, format) of the headline numbers; a metric that a step lacks is left out."""

REWARD_PARTS = "reward_part/"
"""Prefix of the metrics that are mean reward parts."""

_NOT_PHASES = ("time/step", "time/idle_fraction", "time/switch_share", "time/tokens_per_second")


class TrainingDisplay:
    """Progress of a run, as a context manager around its steps."""

    def __init__(self, name: str, steps: int, every: int = 10, console: Console | None = None) -> None:
        """
        Args:
            name: of the run.
            steps: total.
            every: steps per line where there is no terminal; the first and last step are always shown.
            console: where to draw; stdout by default.
        """
        self._console = console or Console()
        self._steps = steps
        self._every = every
        self._name = name
        self._live: Live | None = None
        self._phase = ""
        self._phase_began = time.monotonic()
        self._announced: set[str] = set()
        self._metrics: Mapping[str, float] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task(escape(name), total=steps)

    def __enter__(self) -> TrainingDisplay:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._phase = ""
            self._live.stop()
            self._live = None

    def start_at(self, step: int) -> None:
        """Steps that were done before a resume; they do not count for the time left."""
        self._progress.reset(self._task, completed=step, total=self._steps)

    def phase(self, name: str) -> None:
        """What is going on now; suits `PhaseTimer(on_phase=…)`. Without a terminal, only a phase's first time shows."""
        self._phase, self._phase_began = name, time.monotonic()
        if self._live is None and name not in self._announced:
            self._announced.add(name)
            self.message(f"{name} …")

    def message(self, text: str) -> None:
        """A line that stays, above the progress display."""
        self._console.print(escape(text), highlight=False)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step."""
        self._metrics = metrics
        self._progress.update(self._task, completed=step)
        if self._live is None and (step % self._every == 0 or step in (1, self._steps)):
            self._console.print(escape(plain_line(step, self._steps, metrics)), highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress]
        if self._metrics:
            grid = Table.grid(padding=(0, 2))
            rows = (
                ("", _headline(self._metrics)),
                ("reward parts", _reward_parts(self._metrics)),
                ("seconds", _phases(self._metrics)),
            )
            for label, values in rows:
                if values:
                    grid.add_row(f"[dim]{label}", "  ".join(f"{escape(k)} [bold]{escape(v)}[/]" for k, v in values))
            parts.append(grid)
        if self._phase:
            parts.append(f"[dim]{escape(self._phase)} … {time.monotonic() - self._phase_began:.0f} s")
        return Group(*parts)


def plain_line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """One step as one line of text, for logs."""
    numbers = [*_headline(metrics), *_reward_parts(metrics)]
    if "time/step" in metrics:
        phases = ", ".join(f"{name} {value}" for name, value in _phases(metrics))
        numbers.append(("seconds", f"{metrics['time/step']:.1f}" + (f" ({phases})" if phases else "")))
    return "  ".join([f"step {step}/{steps}", *(f"{name} {value}" for name, value in numbers)])


def _headline(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(label, form.format(metrics[key])) for label, key, form in SHOWN if key in metrics]


def _reward_parts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(k.removeprefix(REWARD_PARTS), f"{v:.3f}") for k, v in metrics.items() if k.startswith(REWARD_PARTS)]


def _phases(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    names = [k for k in metrics if k.startswith("time/") and not k.startswith(_NOT_PHASES)]
    return [(k.removeprefix("time/"), f"{metrics[k]:.1f}") for k in names]


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
