"""`speechrl compare`: two evaluations of the same utterances."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.evaluation.difference import Comparison, Pair, Row, compare
from cluster.evaluation.paired import LEVEL, Difference
from cluster.evaluation.sources import read_source
from speech.edits import AlignedUnits
from speech.errors import UserError
from speech.text import is_spaced

_EXAMPLES = """examples:
  speechrl compare runs/a runs/b                 their test splits after training
  speechrl compare runs/a/evaluation-before.json runs/a/evaluation-after.json --changed 10
  speechrl compare old.jsonl new.jsonl --json --fail-if-worse
A line of jsonl has `id`, `text` (or `hypothesis`) and `reference`, which one of the files may leave out.
Differences of WER and CER with their intervals and p (docs/evaluation.md), by language and by kind of error,
and the utterances that changed most. What only one file has is counted and named, and not compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `speechrl compare`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("a", metavar="A", help="folder of a run, an evaluation of one (.json), or hypotheses (.jsonl)")
    parser.add_argument("b", metavar="B", help="the same, of the system that may be better")
    parser.add_argument(
        "--judge", choices=("first", "second"), default="first", help="of models that speak: whose transcripts"
    )
    parser.add_argument("--changed", type=int, default=3, metavar="N", help="show the N most improved and worsened (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--fail-if-worse", action="store_true", help=f"exit code 1 where B's WER is higher with p < {LEVEL}"
    )


def run(args: argparse.Namespace) -> int:
    """Print how B differs from A; returns 1 where it is worse and that was to be a failure, else 0."""
    if args.changed < 0:
        raise UserError(f"--changed: {args.changed} is below 0")
    found = compare(read_source(Path(args.a), args.judge), read_source(Path(args.b), args.judge))
    if args.json:
        sys.stdout.write(json.dumps(found.to_json(args.changed), indent=1) + "\n")
    else:
        print_comparison(found, args.changed)
    return int(args.fail_if_worse and found.overall.wer.worse)


def print_comparison(found: Comparison, changed: int, console: Console | None = None) -> None:
    """Print a comparison, in 100 columns or less where ids and texts are short.

    Args:
        changed: how many of the most improved, and of the most worsened utterances.
        console: where to print; stdout by default.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 100)

    def say(text: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"A  {found.a.path}")
    say(f"B  {found.b.path}")
    for warning in found.warnings:
        say(f"warning: {warning}")
    rows = list(found.languages.items()) if len(found.languages) > 1 else []
    rows.append(("all" if rows else next(iter(found.languages)), found.overall))
    console.print(_rates(rows))
    console.print(_kinds(rows))
    better, worse = found.most_improved(len(found.pairs)), found.most_worsened(len(found.pairs))
    same = len(found.pairs) - len(better) - len(worse)
    say(f"B has fewer errors on {len(better):,} utterances, more on {len(worse):,}, as many on {same:,}")
    for title, pairs in (("most improved", better[:changed]), ("most worsened", worse[:changed])):
        if pairs:
            say(f"\n{title}:")
            for line in _shown(pairs):
                say(f"  {line}")
    say(f"\n{_verdict(found.overall.wer)}")


def _verdict(wer: Difference) -> str:
    if wer.p >= LEVEL:
        return f"WER: no significant difference (p{_p(wer.p)}, sign-flip test)"
    word = "higher" if wer.difference > 0 else "lower"
    relative = f", {wer.difference / wer.a:+.1%} relative" if wer.a else ""
    return f"WER: B is significantly {word} than A (p{_p(wer.p)}, sign-flip test{relative})"


def _rates(rows: Sequence[tuple[str, Row]]) -> Table:
    table = _table("B − A in points, with its 95 % interval (paired bootstrap over utterances)")
    for heading in ("", "A", "B", "B − A", "95 % interval", "p", "words", "utterances"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    measures: tuple[tuple[str, Callable[[Row], Difference]], ...] = (("WER", lambda r: r.wer), ("CER", lambda r: r.cer))
    for measure, of in measures:
        for label, row in rows:
            d = of(row)
            spread = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
            counts = (f"{row.edits_a.reference_length:,}", f"{row.utterances:,}") if measure == "WER" else ("", "")
            rates = (f"{d.a:.2%}", f"{d.b:.2%}", f"{100 * d.difference:+.2f}")
            table.add_row(f"{measure} {label}", *rates, spread, _p(d.p).removeprefix("="), *counts)
        table.add_section()
    return table


def _kinds(rows: Sequence[tuple[str, Row]]) -> Table:
    table = _table("errors by kind, A → B")
    for heading in ("", "substitutions", "deletions", "insertions", "all"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for label, row in rows:
        a, b = row.edits_a, row.edits_b
        counts = (
            (a.substitutions, b.substitutions),
            (a.deletions, b.deletions),
            (a.insertions, b.insertions),
            (a.errors, b.errors),
        )
        table.add_row(label, *(f"{one:,} → {other:,}" for one, other in counts))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))


def _p(p: float) -> str:
    return "<0.0002" if p < 0.0002 else f"={p:.4f}"


def _shown(pairs: Sequence[Pair]) -> Iterator[str]:
    """Both alignments of each utterance: `[right → heard]`."""
    for pair in pairs:
        a, b = pair.words_a, pair.words_b
        yield f"{pair.id} ({pair.language}): {a.errors} → {b.errors} errors of {a.reference_length}"
        for name, parts in zip("AB", pair.alignments(), strict=True):
            yield f"  {name}  {_marked(parts, ' ' if is_spaced(pair.language) else '')}"


def _marked(parts: Sequence[AlignedUnits], between: str) -> str:
    shown = []
    for part in parts:
        reference, hypothesis = between.join(part.reference), between.join(part.hypothesis)
        shown.append(reference if part.kind == "equal" else f"[{reference or '∅'} → {hypothesis or '∅'}]")
    return between.join(shown) or "(nothing)"
