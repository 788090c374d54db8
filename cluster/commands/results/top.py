"""`speechrl top`: a running job, seen from another terminal or another machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cluster.monitoring.progress import REWARD_PARTS, SHOWN, phases
from cluster.report.rules import Facts, verdicts
from cluster.report.runs import RunRecord
from cluster.report.watching import FLEET, ClusterSource, FolderSource, Source, View
from speech.errors import UserError

RECENT = 10
"""Steps whose mean is shown, beside that of as many before them."""
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 40
"""Characters of a curve."""

_EXAMPLES = """examples:
  speechrl top runs/asr_demo                                 a run of this machine, or of a shared file system
  speechrl top --address http://head:8265                    a run of a cluster, by the metrics of its nodes
  speechrl top runs/asr_demo --once                          print once and end, for scripts
Ctrl-C ends the view, not the run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechrl top`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="folder of the run")
    parser.add_argument(
        "--address", help="of a cluster's dashboard (http://HEAD:8265), where the folder is out of reach"
    )
    parser.add_argument("--run-name", metavar="NAME", help="with --address: which run, where several train")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks (2)")
    parser.add_argument("--once", action="store_true", help="print once and end")


def run(args: argparse.Namespace) -> int:
    """Show the run until it has ended, or until Ctrl-C.

    Raises:
        UserError: there is no such run, or it cannot be reached.
    """
    if (args.run is None) == (args.address is None):
        raise UserError("name the folder of a run, or the cluster with --address; `speechrl top --help` has examples")
    with ExitStack() as stack:
        source: Source
        if args.run is not None:
            source = FolderSource(args.run)
        else:
            from cluster.jobs.client import jobs_server  # loads Ray

            source = ClusterSource(stack.enter_context(jobs_server(args.address)), args.run_name)
        console = Console()
        if args.once or not sys.stdout.isatty():
            console.print(render(source.look()))
            return 0
        with Live(render(source.look()), console=console, auto_refresh=False) as live:
            while not (view := source.look()).status:
                live.update(render(view), refresh=True)
                time.sleep(args.every)
            live.update(render(view), refresh=True)
    return 0


def render(view: View) -> RenderableType:
    """The page of a terminal."""
    head = f"[bold]{escape(view.name)}[/]  "
    if not view.lines:
        return f"{head}{view.status or 'no step has ended yet'}"
    last = view.lines[-1]
    head += f"step {last['step']}" + (f"/{view.steps}" if view.steps else "")
    rates = numbers(view.lines[-RECENT:], "time/step")
    if view.status:
        head += f"  {view.status}"
    elif rates:
        pace = fmean(rates)
        head += f"  {pace:.1f} s a step"
        if view.steps:
            head += f"  {_duration(pace * max(0, view.steps - last['step']))} left"
        if view.age is not None:
            late = "[bold red]" if view.age > max(60.0, 10 * pace) else ""
            head += f"  {late}last step {_duration(view.age)} ago{'[/]' if late else ''}"
    parts: list[RenderableType] = [head, _metrics(view.lines)]
    if seconds := phases(last):
        parts.append("seconds   " + "  ".join(f"{name} {value}" for name, value in seconds))
    if fleet := [f"{key.removeprefix('fleet/')} {last[key]:.0f}" for key in FLEET if last.get(key) is not None]:
        parts.append("fleet     " + "  ".join(fleet))
    record = RunRecord(view.name, Path(), metrics=view.lines)
    for rule, verdict in verdicts(Facts(record)):
        if verdict.state == "warning":
            parts.append(f"[yellow]{escape(rule.title)}[/]: {escape(verdict.text)}")
    parts += [f"[dim]{escape(message)}" for message in view.messages]
    return Group(*parts)


def _metrics(lines: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for column in ("", f"last {RECENT}", "before", f"{min(len(lines), CURVE)} steps"):
        table.add_column(column, justify="left" if column.endswith("steps") or not column else "right")
    known = dict.fromkeys(key for line in lines for key in line)
    parts = [(key.removeprefix(REWARD_PARTS), key, "{:.3f}") for key in known if key.startswith(REWARD_PARTS)]
    for label, key, form in (*SHOWN, *parts):
        values = numbers(lines, key)
        if key == "version" or not values:
            continue
        before = values[-2 * RECENT : -RECENT]
        shown = form.format(fmean(before)) if before else ""
        table.add_row(label, form.format(fmean(values[-RECENT:])), shown, sparkline(values[-CURVE:]))
    return table


def numbers(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Values of a metric, of the steps that have it."""
    return [float(line[key]) for line in lines if isinstance(line.get(key), int | float)]


def sparkline(values: Sequence[float]) -> str:
    """A curve of one line, from the lowest value to the highest."""
    low, high = min(values), max(values)
    if high == low:
        return BLOCKS[0] * len(values)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in values)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
