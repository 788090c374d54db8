"""`speechrl data inspect`: what data sets hold, what they share, and what in them looks wrong."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.runs import durable
from speech.errors import Problem, UserError, first_of
from speech.manifests import FORMATS, Manifest, load_manifest
from speech.preparation.inspection import LENGTH_EDGES, RATE_EDGES, Inspection, inspect, overlap
from speech.preparation.sounds import Sound, listen
from speech.preparation.statistics import DURATION_EDGES, summarise

_EXAMPLES = """examples:
  speechrl data inspect train.jsonl                             one data set, by its manifest and headers alone
  speechrl data inspect train.jsonl test.jsonl --audio          also listen, and compare the two
  speechrl data inspect train.jsonl test.jsonl -o data.html     the same as a page
Bad lines are left out and counted. The exit code is 1 with --strict when two data sets share a text or a recording."""

BAR = 30
"""Characters of the longest bar of a histogram."""
WIDTH = 110
"""Columns of the page."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `speechrl data` and its subcommands."""
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    inspection = commands.add_parser(
        "inspect",
        help="counts, histograms, duplicates, overlaps, odd recordings",
        description="Look at data sets before training on them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspection.add_argument("manifests", metavar="MANIFEST", nargs="+", help="data sets, in any known form")
    inspection.add_argument("--format", default="auto", metavar="NAME", help=f"auto, {', '.join(FORMATS)} (auto)")
    inspection.add_argument(
        "--audio", action="store_true", help="decode all recordings: silence, clipping, equal recordings (minutes)"
    )
    inspection.add_argument("--shown", type=int, default=5, metavar="N", help="examples of each finding (5)")
    inspection.add_argument("-o", "--out", type=Path, metavar="FILE", help="write all of it as a page (.html)")
    inspection.add_argument("--strict", action="store_true", help="exit code 1 when two data sets share anything")


def run(args: argparse.Namespace) -> int:
    """Print, and write the page; returns the exit code.

    Raises:
        UserError: a data set cannot be read at all, or the page cannot be written.
    """
    if args.out is not None and args.out.suffix != ".html":
        raise UserError(f"--out {args.out}: the page is HTML; choose a name that ends in .html")
    names = [str(path) for path in args.manifests]
    if len(set(names)) < len(names):
        raise UserError("one manifest was given twice")
    manifests = [load_manifest(name, format=args.format, on_bad="skip") for name in names]
    heard = [listen(manifest.utterances) if args.audio else ({}, []) for manifest in manifests]
    sounds = [found for found, _ in heard]
    # A page is as wide on every terminal.
    console = Console(record=args.out is not None, width=None if args.out is None else WIDTH, highlight=False)
    for manifest, (found, problems) in zip(manifests, heard, strict=True):
        findings = inspect(manifest.utterances, found if args.audio else None)
        _print_set(console, manifest, findings, problems, args.shown)
    shared = _print_overlaps(console, manifests, sounds, args.audio, args.shown)
    if args.out is not None:
        durable.replace(args.out, console.export_html())
        console.print(f"→ {escape(str(args.out))}", soft_wrap=True)
    return int(shared and args.strict)


def _print_set(
    console: Console, manifest: Manifest, findings: Inspection, undecodable: Sequence[Problem], shown: int
) -> None:
    total = summarise(manifest.utterances)
    console.rule(f"[bold]{escape(str(manifest.path))}", align="left")
    facts = Table.grid(padding=(0, 2))
    languages = ", ".join(f"{name or 'not given'} {count:,}" for name, count in total.languages.most_common())
    characters = "".join(character for character, _ in findings.characters.most_common())
    for label, value in (
        ("utterances", f"{total.utterances:,}"),
        ("hours", f"{total.seconds / 3600:,.2f}"),
        ("words", f"{total.words:,}"),
        ("languages", languages),
        ("speakers", f"{total.speakers:,}" if total.speakers else "not given"),
        ("with keywords", f"{total.with_keywords:,}"),
        ("different characters", f"{len(findings.characters):,}: {characters[:200]}"),
    ):
        facts.add_row(label, escape(value))
    console.print(facts)
    _histogram(console, "seconds", DURATION_EDGES, total.durations)
    _histogram(console, "characters of a transcript", LENGTH_EDGES, findings.lengths)
    _histogram(console, "characters a second", RATE_EDGES, findings.rates)
    _finding(console, "bad lines, left out", [str(problem) for problem in manifest.skipped], shown)
    _finding(console, "recordings that cannot be used", [str(problem) for problem in undecodable], shown)
    _finding(console, "transcripts that do not fit their recordings", _reasons(findings.odd), shown)
    _finding(console, "recordings with a fault", _reasons(findings.sounds), shown)
    _finding(console, "texts that occur more than once", [first_of(same, shown) for same in findings.same_text], shown)
    same_sound = [first_of(same, shown) for same in findings.same_sound]
    _finding(console, "recordings that occur more than once", same_sound, shown)
    console.print()


def _print_overlaps(
    console: Console, manifests: Sequence[Manifest], sounds: Sequence[Mapping[str, Sound]], audio: bool, shown: int
) -> bool:
    """What each two data sets share; whether any share a text or a recording."""
    if len(manifests) < 2:
        return False
    table = Table(title="shared by two data sets", title_justify="left")
    for column in ("", "texts", "recordings", "speakers", "examples"):
        table.add_column(column, justify="left" if column in ("", "examples") else "right")
    shared = False
    for (first, heard), (second, heard_too) in combinations(zip(manifests, sounds, strict=True), 2):
        both = overlap(first.utterances, second.utterances, heard, heard_too, shown)
        shared |= bool(both.texts or both.sounds)
        examples = ", ".join(f"{a} = {b}" for a, b in both.examples)
        pair = f"{Path(first.path).name}, {Path(second.path).name}"
        recordings = f"{both.sounds:,}" if audio else "–"
        table.add_row(escape(pair), f"{both.texts:,}", recordings, f"{both.speakers:,}", escape(examples))
    console.print(table)
    return shared


def _histogram(console: Console, title: str, edges: Sequence[float], counts: Sequence[int]) -> None:
    if not any(counts):
        return
    bounds = [f"{edge:g}" for edge in edges]
    labels = [f"under {bounds[0]}", *(f"{low} to {high}" for low, high in pairwise(bounds)), f"{bounds[-1]} or more"]
    grid = Table.grid(padding=(0, 2))
    for label, count in zip(labels, counts, strict=True):
        if count:
            grid.add_row(label, f"{count:,}", "█" * max(1, round(BAR * count / max(counts))))
    console.print(f"\n{title}")
    console.print(grid)


def _finding(console: Console, title: str, lines: Sequence[str], shown: int) -> None:
    if not lines:
        return
    console.print(f"\n[bold yellow]{title}: {len(lines):,}")
    for line in lines[:shown]:
        console.print(f"  {escape(line)}", soft_wrap=True)
    if len(lines) > shown:
        console.print(f"  … and {len(lines) - shown:,} more")


def _reasons(found: Mapping[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in found.items()]
