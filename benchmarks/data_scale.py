"""What a long manifest costs the driver before Ray starts: first start, second start, resume.

    python -m benchmarks.data_scale 1000000            # `duration` given: headers wait
    python -m benchmarks.data_scale 1000000 --tts      # texts to be spoken, each of which the tokenizer reads
    python -m benchmarks.data_scale 100000 --files     # no `duration`, and a file for each utterance
    python -m benchmarks.data_scale 1000000 --bad 0.01 # so many lines without a text, with `on_bad: skip`

Data, model and run folders are made in a temporary folder (`TMPDIR`), which is removed. Each start is a process of its
own that does what `speechrl train` does before it starts Ray: it reads the manifest, imports torch and Ray, finds what
cannot be used, compares the data with the run's and deals out the first batch. It gives wall and CPU seconds and the
peak of resident memory, torch and Ray included.
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

from cluster.config import load_config
from cluster.data.prompts import PromptSource, load_manifests

WORDS = "turn on the blue camera in hall please open window and play some quiet music for my friend today".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=int)
    parser.add_argument("--files", action="store_true", help="write the files, and no durations into the manifest")
    parser.add_argument("--tts", action="store_true", help="a model that speaks")
    parser.add_argument("--bad", type=float, default=0.0, help="share of lines without a text, which are skipped")
    parser.add_argument("--start", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(*args.start)))
        return
    # Not in the processes that are measured: they load torch.
    from tests.demo_checkpoint import write_demo_checkpoint
    from tests.speech.families.tts_checkpoints import write_demo_tts

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = generate(folder, args.lines, args.files, args.tts, args.bad)
        model = write_demo_tts(folder / "model") if args.tts else write_demo_checkpoint(folder / "model")
        print(f"{args.lines:,} lines, {manifest.stat().st_size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")
        for name, run in (("first start", "a"), ("second start", "b"), ("resume", "b")):
            (folder / run).mkdir(exist_ok=True)
            command = [sys.executable, "-m", "benchmarks.data_scale", "0", "--start", manifest, model, folder / run]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(result.stdout)
            print(f"{name:12}  " + "  ".join(f"{key} {value:,.1f}" for key, value in found.items()))


def generate(folder: Path, lines: int, files: bool, tts: bool, bad: float) -> Path:
    """A manifest, last changed an hour ago, and its audio: links to one file, because only headers are read."""
    chance = random.Random(0)
    if files or tts:
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
            if tts:
                row = {"id": name, "text": text, "language": "en", "prompt_audio": "tone.flac"}
                row |= {"prompt_text": "open the window"}
            elif i % 3 == 0:
                row |= {"keywords": [text.split()[1]]}
            if chance.random() < bad:
                row["text"] = ""
            file.write(json.dumps(row) + "\n")
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def start(manifest: Path, model: Path, run: Path) -> dict[str, float]:
    """What a start does before Ray; a second one in the same folder is a resume."""
    begun, state = time.monotonic(), run / "state.json"
    required = ["name=n", f"model.path={model}", f"data.train={manifest}", "data.on_bad=skip"]
    config = load_config(None, required)
    manifests = load_manifests(config)
    read = time.monotonic()
    # As `speechrl train` does: after the data are read.
    from cluster.data.fitness import without_unfit
    from cluster.runs.snapshot import check_data
    from cluster.training.policy_run import _checks
    from speech.families import load_family

    imported = time.monotonic()
    family = load_family(config.model.path)
    manifests, _ = without_unfit(config, manifests, _checks(config, family, manifests["train"]))
    checked = time.monotonic()
    check_data(run, manifests, resumed=state.exists())
    compared = time.monotonic()
    source = PromptSource(manifests["train"].utterances, seed=1)
    if state.exists():
        source.restore(json.loads(state.read_text()))
    batch = source.take(32)
    source.at([(prompt.epoch, prompt.position) for prompt in batch])
    state.write_text(json.dumps(source.state()))
    ended = time.monotonic()
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "all s": ended - begun,
        "reading s": read - begun,
        "imports s": imported - read,
        "fitness s": checked - imported,
        "comparison s": compared - checked,
        "order s": ended - compared,
        "CPU s": own.ru_utime + own.ru_stime,
        "children's CPU s": children.ru_utime + children.ru_stime,
        "peak MB": own.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
