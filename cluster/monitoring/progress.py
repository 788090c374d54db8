"""What a user sees: live progress in a terminal, plain lines elsewhere, and the result at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

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
                ("seconds", phases(self._metrics)),
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
        parts = ", ".join(f"{name} {value}" for name, value in phases(metrics))
        numbers.append(("seconds", f"{metrics['time/step']:.1f}" + (f" ({parts})" if parts else "")))
    return "  ".join([f"step {step}/{steps}", *(f"{name} {value}" for name, value in numbers)])


def _headline(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(label, form.format(metrics[key])) for label, key, form in SHOWN if key in metrics]


def _reward_parts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(k.removeprefix(REWARD_PARTS), f"{v:.3f}") for k, v in metrics.items() if k.startswith(REWARD_PARTS)]


def phases(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Seconds of a step by phase, as text."""
    names = [k for k in metrics if k.startswith("time/") and not k.startswith(_NOT_PHASES)]
    return [(k.removeprefix("time/"), f"{metrics[k]:.1f}") for k in names]
