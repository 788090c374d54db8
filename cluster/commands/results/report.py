"""`speechrl report`: one page that shows what runs did."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from cluster.report.live import serve
from cluster.report.page import render
from cluster.report.runs import read_runs
from cluster.runs import durable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `speechrl report`."""
    parser.epilog = (
        "examples:\n"
        "  speechrl report runs/asr_demo                         writes report.html; open it in a browser\n"
        "  speechrl report runs/small_lr runs/large_lr -o both.html\n"
        "  speechrl report --live runs/asr_demo                  http://127.0.0.1:8700, follows a running job\n"
        "The page is one file without any network request: send it, keep it, print it. It has\n"
        "  - warnings that a human should read, each with its rule and its reason\n"
        "  - the scores before and after, and by both judges where the model speaks\n"
        "  - curves of all metrics; several runs lie over each other, and what differs between them stands first\n"
        "  - utterances before beside after, with coloured word errors and sound, to sort and to filter\n"
        "  - groups of a step with every sample, its reward and its advantage: what the policy is taught\n"
        "  - the timeline, where time went, and the ledger's account\n"
        "A run that is not finished, or of which files are gone, is shown as far as it goes.\n"
        "docs/report.md explains the page."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument("--live", action="store_true", help="serve the page on 127.0.0.1, and follow the runs")
    parser.add_argument("--port", type=int, default=8700, help="of --live (default 8700; 0 takes a free one)")
    parser.add_argument("-o", "--out", metavar="FILE", default="report.html", help="page to write (report.html)")


def run(args: argparse.Namespace) -> int:
    """Write the page of `args.runs` to `args.out`, or serve it with `args.live`.

    Raises:
        UserError: a folder is no run's, a file of it is damaged, a package is missing, or the page cannot be written.
    """
    console = Console()
    if args.live:
        serve(args.runs, args.port, lambda address: console.print(f"{address}   Ctrl-C ends", highlight=False))
        return 0
    runs = read_runs(args.runs)
    page = render(runs)
    out = Path(args.out)
    durable.replace(out, page)
    console.print(f"[bold]{out}[/] ({len(page.encode()) / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    return 0
