"""What a long manifest costs the driver: first start, second start, resume; CPU seconds, wall clock, peak memory.

    python -m benchmarks.data_scale 1000000            # `duration` given: headers wait
    python -m benchmarks.data_scale 100000 --files     # no `duration`, and a file for each utterance

Data and run folders are made in a temporary folder (`TMPDIR`), which is removed. Each start is a process of its own
that does what `speechrl train` does with its data before the first step, without Ray, engines and learner.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from cluster.config import DataConfig
from cluster.data.prompts import PromptSource, load_split
from cluster.runs.snapshot import check_data

WORDS = "turn on the blue camera in hall please open window and play some quiet music for my friend today".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=int)
    parser.add_argument("--files", action="store_true", help="write the files, and no durations into the manifest")
    parser.add_argument("--start", nargs=2, metavar=("MANIFEST", "RUN"), type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(*args.start)))
        return
    with tempfile.TemporaryDirectory() as folder:
        manifest = generate(Path(folder), args.lines, args.files)
        print(f"{args.lines:,} lines, {manifest.stat().st_size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")
        for name, run in (("first start", "a"), ("second start", "b"), ("resume", "b")):
            (Path(folder) / run).mkdir(exist_ok=True)
            command = [sys.executable, "-m", "benchmarks.data_scale", "0", "--start", manifest, Path(folder) / run]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(result.stdout)
            print(f"{name:12}  " + "  ".join(f"{key} {value:,.1f}" for key, value in found.items()))


def generate(folder: Path, lines: int, files: bool) -> Path:
    """A manifest, last changed an hour ago, and its audio: links to one file, because only headers are read."""
    chance = random.Random(0)
    if files:
        soundfile.write(folder / "tone.flac", np.sin(np.arange(32_000) / 10) / 2, 16_000)
    path = folder / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(lines):
            text = " ".join(chance.choices(WORDS, k=chance.randint(4, 16)))
            name = f"corpus-train-{i:07d}"
            row = {"id": name, "audio": f"audio/{i % 1000:03d}/{name}.flac", "text": text}
            row |= {"language": "en", "speaker": f"speaker-{i % 2000}"}
            if files:
                audio = folder / row["audio"]
                audio.parent.mkdir(parents=True, exist_ok=True)
                audio.write_bytes((folder / "tone.flac").read_bytes())
            else:
                row |= {"duration": round(chance.uniform(1, 15), 3)}
            if i % 3 == 0:
                row |= {"keywords": [text.split()[1]]}
            file.write(json.dumps(row) + "\n")
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def start(manifest: Path, run: Path) -> dict[str, float]:
    """What a start does with its data; a second one in the same folder is a resume."""
    begun, state = time.monotonic(), run / "state.json"
    loaded = load_split(DataConfig(train=str(manifest)), str(manifest))
    read = time.monotonic()
    check_data(run, {"train": loaded}, resumed=state.exists())
    source = PromptSource(loaded.utterances, seed=1, batch_prompts=32)
    if state.exists():
        source.restore(json.loads(state.read_text()))
    source.next_batch()
    state.write_text(json.dumps(source.state()))
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "reading s": read - begun,
        "all s": time.monotonic() - begun,
        "CPU s": own.ru_utime + own.ru_stime,
        "children's CPU s": children.ru_utime + children.ru_stime,
        "peak MB": own.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
