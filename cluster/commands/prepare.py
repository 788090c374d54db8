"""`speechrl prepare`: check a data set, choose from it, convert its audio, and write it as our manifest."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config.keys import meanings
from cluster.runs import durable
from speech.audio import AudioLimits
from speech.edits import word_edits
from speech.errors import InputError, Problem, UserError
from speech.manifests import FORMATS, Manifest, load_manifest, write_manifest
from speech.preparation.conversion import convert_audio
from speech.preparation.hypotheses import load_hypotheses
from speech.preparation.selection import (
    measure_difficulty,
    select_by_duration,
    select_hard,
    select_keyword_rich,
    select_long_and_repetitive,
    select_random,
    split,
)
from speech.preparation.statistics import DURATION_EDGES, Statistics, summarise
from speech.records import Utterance

_EXAMPLES = """examples:
  speechrl prepare data/train.jsonl                            only check, and print statistics
  speechrl prepare kaldi/train --out data --audio flac         as our manifest, with 16 kHz files of its own
  speechrl prepare all.jsonl --out rl --hypotheses a.jsonl b.jsonl --error-rate 0.05 0.8 --disagreement 0.3
  speechrl prepare all.jsonl --out data --split train=0.9 valid=0.05 test=0.05 --by-speaker
An interrupted conversion continues when the command is run again."""

_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechrl prepare`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("manifest", metavar="MANIFEST", help="file or folder of any known format (docs/data.md)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write manifests (and audio) here, or one compressed manifest where this is NAME.gz; only check without",
    )
    parser.add_argument("--format", default="auto", metavar="NAME", help=f"auto, {', '.join(FORMATS)} (default: auto)")
    parser.add_argument(
        "--on-bad", choices=["error", "skip"], default="error", help="stop at bad lines, or leave them out (error)"
    )
    help_texts = meanings(AudioLimits)
    for limit in fields(AudioLimits):
        option = f"--{limit.name.replace('_', '-')}"
        text = f"{help_texts[limit.name].rstrip('.')} ({limit.default:g})"
        parser.add_argument(option, metavar="S", type=float, default=limit.default, help=text)

    choose = parser.add_argument_group("selection (an utterance must meet every criterion given)")
    choose.add_argument(
        "--longer-than", metavar="S", type=float, default=0.0, help="keep utterances of at least S seconds"
    )
    choose.add_argument(
        "--shorter-than", metavar="S", type=float, default=float("inf"), help="keep utterances under S seconds"
    )
    choose.add_argument("--keywords", metavar="N", type=int, default=0, help="keep utterances with N or more keywords")
    choose.add_argument(
        "--hypotheses",
        metavar="FILE",
        nargs="+",
        default=[],
        help="jsonl with id and hypothesis, one file for each recogniser (as `speechrl evaluate --out` writes)",
    )
    choose.add_argument(
        "--error-rate",
        metavar=("LOW", "HIGH"),
        nargs=2,
        type=float,
        help="keep utterances whose mean error rate over the recognisers lies between these",
    )
    choose.add_argument(
        "--disagreement",
        metavar="RATE",
        type=float,
        help="keep also those on which the recognisers differ from one another by this rate or more",
    )
    choose.add_argument(
        "--repetitive",
        metavar=("S", "SHARE"),
        nargs=2,
        type=float,
        help="keep utterances of at least S seconds in whose transcript SHARE of the word pairs repeat; beside "
        "--hypotheses, keep these also",
    )
    choose.add_argument("--random", metavar="N", type=int, help="of what is left, keep N at random")
    choose.add_argument("--seed", type=int, default=0, help="of --random and --split (0)")

    write = parser.add_argument_group("output")
    write.add_argument(
        "--audio",
        choices=["keep", "flac", "opus"],
        default="keep",
        help="refer to the files where they are, or write a mono file for each utterance (keep)",
    )
    write.add_argument("--sample-rate", metavar="HZ", type=int, default=16_000, help="of the files written (16000)")
    write.add_argument(
        "--split", metavar="NAME=SHARE", nargs="+", type=_share, help="divide at random into NAME.jsonl files"
    )
    write.add_argument("--by-speaker", action="store_true", help="with --split: no speaker is in two parts")


def run(args: argparse.Namespace) -> int:
    """Do what the options say; returns the exit code.

    Raises:
        UserError: bad input, contradicting options, or an output folder that cannot be written. No manifest is
            written then.
    """
    shares = _checked(args)
    console = Console()
    try:
        limits = AudioLimits(min_seconds=args.min_seconds, max_seconds=args.max_seconds)
    except ValueError as error:
        raise UserError(str(error)) from error
    manifest = load_manifest(args.manifest, format=args.format, on_bad=args.on_bad, limits=limits)
    problems = list(manifest.skipped)
    utterances = _select(manifest, args)
    if args.audio != "keep":
        utterances, bad = convert_audio(utterances, _folder(args.out) / "audio", args.audio, args.sample_rate)
        if bad and args.on_bad == "error":
            raise InputError(f"{len(bad):,} audio files cannot be decoded; nothing was written", bad)
        problems += bad
    parts = split(utterances, shares, args.seed, args.by_speaker) if shares else {"manifest": utterances}
    console.print(_table({name: summarise(part) for name, part in parts.items()}))
    _report(problems)
    if args.out is not None:
        for name, part in parts.items():
            write_manifest(_output(args.out, name), part)
            console.print(f"{len(part):,} utterances → {_output(args.out, name)}", soft_wrap=True, highlight=False)
        if problems:
            durable.replace(
                _folder(args.out) / "skipped.jsonl", "".join(json.dumps(asdict(p)) + "\n" for p in problems)
            )
    return 0


def _checked(args: argparse.Namespace) -> dict[str, float]:
    """Refuse options that contradict one another; returns the shares of the split."""
    shares = dict(args.split or ())
    if args.out is None and (shares or args.audio != "keep"):
        raise UserError("--split and --audio write files: say where with --out DIR")
    if bool(args.hypotheses) != (args.error_rate is not None or args.disagreement is not None):
        raise UserError("--hypotheses goes with --error-rate LOW HIGH, with --disagreement RATE, or with both")
    if args.disagreement is not None and len(args.hypotheses) < 2:
        raise UserError("--disagreement needs the --hypotheses of two or more recognisers")
    if args.by_speaker and not shares:
        raise UserError("--by-speaker goes with --split")
    if shares and (len(shares) < len(args.split) or abs(sum(shares.values()) - 1) > 1e-6):
        raise UserError(f"--split: names must differ and shares sum to 1, they sum to {sum(shares.values()):g}")
    if shares and args.out.suffix == ".gz":
        raise UserError(f"--split writes several manifests: --out must be a folder, is {args.out}")
    if args.out is not None:
        for name in shares or {"manifest": 1.0}:
            if _output(args.out, name).absolute() == Path(args.manifest).absolute():
                raise UserError(f"{args.manifest}: the output would replace the input; choose another --out")
    return shares


def _output(folder: Path, name: str) -> Path:
    return folder if folder.suffix == ".gz" else folder / f"{name}.jsonl"


def _folder(out: Path) -> Path:
    """Where audio and the list of what was left out go."""
    return out.parent if out.suffix == ".gz" else out


def _select(manifest: Manifest, args: argparse.Namespace) -> Sequence[Utterance]:
    chosen: Sequence[Utterance] = manifest.utterances
    if args.longer_than > 0 or args.shorter_than < float("inf"):
        chosen = select_by_duration(chosen, args.longer_than, args.shorter_than)
    if args.keywords:
        chosen = select_keyword_rich(chosen, args.keywords)
    hard = _hard(chosen, args)
    if hard is not None:
        chosen = [utterance for utterance in chosen if utterance.id in hard]
    if args.random is not None:
        chosen = select_random(chosen, args.random, args.seed)
    if not chosen:
        raise UserError(f"{manifest.path}: no utterance of {len(manifest.utterances):,} meets the selection")
    return chosen


def _hard(utterances: Sequence[Utterance], args: argparse.Namespace) -> set[str] | None:
    """Ids of the hard utterances (D1: by recognisers, or long and repetitive); None when that is no criterion."""
    found: list[Utterance] = []
    if args.hypotheses:
        systems = [load_hypotheses(path) for path in args.hypotheses]
        difficulties = measure_difficulty(utterances, systems, _error_rate)
        # Without a range only disagreement counts: an empty one lets nothing else in.
        low, high = args.error_rate or (float("inf"), float("-inf"))
        found += select_hard(utterances, difficulties, low, high, args.disagreement)
    if args.repetitive:
        found += select_long_and_repetitive(utterances, *args.repetitive)
    return {utterance.id for utterance in found} if args.hypotheses or args.repetitive else None


def _error_rate(reference: str, hypothesis: str, language: str | None) -> float:
    return word_edits(reference, hypothesis, language).rate


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not re.fullmatch(r"[\w-]+", name) or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=SHARE with a share between 0 and 1")
    return name, value


def _table(parts: Mapping[str, Statistics]) -> Table:
    """One column for each part, one row for each figure."""
    table = Table(title="data", title_justify="left")
    table.add_column("")
    for name in parts:
        table.add_column(name, justify="right")
    columns = list(parts.values())

    def row(name: str, values: Sequence[str]) -> None:
        table.add_row(name, *values)

    row("utterances", [f"{part.utterances:,}" for part in columns])
    row("hours", [f"{part.seconds / 3600:,.2f}" for part in columns])
    row("words", [f"{part.words:,}" for part in columns])
    row("speakers", [f"{part.speakers:,}" for part in columns])
    row("with keywords", [f"{part.with_keywords:,}" for part in columns])
    for language in sorted({name for part in columns for name in part.languages}, key=lambda name: name or "~"):
        row(f"language {language or 'not given'}", [f"{part.languages[language]:,}" for part in columns])
    for index, label in enumerate(_bins()):
        counts = [part.durations[index] for part in columns]
        if any(counts):
            row(label, [f"{count:,}" for count in counts])
    return table


def _bins() -> list[str]:
    edges = [f"{edge:g}" for edge in DURATION_EDGES]
    between = [f"{low} to {high} s" for low, high in pairwise(edges)]
    return [f"under {edges[0]} s", *between, f"{edges[-1]} s or more"]


def _report(problems: Sequence[Problem]) -> None:
    """Say on standard error what was left out."""
    if not problems:
        return
    print(f"left out, {len(problems):,} problems:", file=sys.stderr)
    for problem in problems[:_SHOWN]:
        print(f"  {problem}", file=sys.stderr)
    if len(problems) > _SHOWN:
        print(f"  … and {len(problems) - _SHOWN:,} more, all in skipped.jsonl with --out", file=sys.stderr)
