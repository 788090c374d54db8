"""Speech to pretrain the demo's encoder on: `python -m assets.build.pretraining [--out build/pretraining_speech]`.

Made like the corpus of `assets/speech`, with many more voices and sentences, and not shipped: the encoder must not be
able to learn voices or sentences by heart. No sentence of the shipped corpus is said in it. Its manifest also names
the shipped `sft` utterances, which are the only ones that went through the lossy codec of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.progress import track

from assets.build import texts
from assets.build.engines import Engines
from assets.build.speech import Split, write_manifest, write_split
from assets.build.voices import PRETRAIN

CORPUS = Path("assets/speech")
CONDITIONS = Split("pretrain", PRETRAIN, texts.PRETRAINING_SIZE, (5.0, 30.0), 0.4)


def shipped_sft(corpus: Path, out: Path) -> list[dict[str, Any]]:
    """The lines of the shipped `sft` manifest, with audio paths relative to `out`."""
    lines = [json.loads(line) for line in (corpus / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line | {"audio": os.path.relpath(corpus / line["audio"], out)} for line in lines]


def build(out: Path, corpus: Path, seed: int, limit: int | None) -> None:
    """Write `out/audio` and `out/pretrain.jsonl`."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    sentences = texts.pretraining(seed)[:limit]
    lines = write_split(CONDITIONS, sentences, Engines(), partial, seed, suffix=".flac")
    spoken = list(track(lines, "pretrain", total=len(sentences)))
    write_manifest(partial / "pretrain.jsonl", spoken + shipped_sft(corpus, out))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.pretraining", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/pretraining_speech"), help="(default: %(default)s)")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="with shipped sft speech (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="utterances, for a quick trial")
    arguments = parser.parse_args()
    build(arguments.out, arguments.corpus, arguments.seed, arguments.limit)


if __name__ == "__main__":
    main()
