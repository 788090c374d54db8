"""Hours of general English speech for supervised training: `python -m assets.build.general_speech --hours 3`.

Sentences are WordNet's examples (`assets.build.wordnet`), voices those of hibari and espeak-ng that the demo's
pretraining uses. `valid` and `test` have voices and sentences of their own: those of the embedded corpus's `valid` and
`test`. Nothing of it is shipped.

The corpus is made in shards of SHARD utterances by `--jobs` processes. A shard that is complete is kept: an interrupted
build goes on where it was, and one with more `--hours` adds shards to those that exist. A shard is made by a process of
its own, so it does not depend on the others (espeak-ng carries a little state from one sentence to the next).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import soundfile
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from assets.build import wordnet
from assets.build.acoustics import SAMPLE_RATE
from assets.build.engines import Engines
from assets.build.speech import Split, babble_bank, disturb, generator, write_manifest
from assets.build.voices import PRETRAIN, TEST, TRAIN, VALID, NeuralVoice, Voice
from speech.errors import UserError

OUT = Path("build/general_speech")
SHARD = 250
SECONDS = 2.15
"""Of an utterance, on average: what `--hours` is divided by."""
NEURAL_SHARE = 0.6
"""Of the utterances: hibari's voice is the more human one, espeak-ng has the more different voices."""
HELD_OUT = {"test": 400, "valid": 150}
SNR_DB, REVERBERANT = (12.0, 35.0), 0.3


def voices_of(split: str) -> tuple[Voice, ...]:
    """The English voices of a split."""
    known = {"train": (*TRAIN, *PRETRAIN), "valid": VALID, "test": TEST}[split]
    return tuple(dict.fromkeys(voice for voice in known if voice.language == "en"))


def choose(voices: Sequence[Voice], rng: random.Random) -> Voice:
    """A neural voice in NEURAL_SHARE of the calls, one of espeak-ng in the others."""
    neural = [voice for voice in voices if isinstance(voice, NeuralVoice)]
    others = [voice for voice in voices if not isinstance(voice, NeuralVoice)]
    return rng.choice(neural if rng.random() < NEURAL_SHARE else others)


def make_shard(out: Path, split: str, index: int, texts: list[str], seed: int) -> tuple[float, float]:
    """Write one shard's audio, then its manifest; returns seconds of speech and of CPU time."""
    started, name = time.process_time(), f"{split}-{index:03d}"
    voices = voices_of(split)
    conditions = Split(name, voices, len(texts), SNR_DB, REVERBERANT)
    engines, chosen = Engines(), random.Random(f"{seed} general {name}")
    bank = babble_bank(conditions, engines, seed)
    folder = out / "audio" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for place, text in enumerate(texts):
        identity = f"{name}-{place:03d}"
        voice, rng = choose(voices, chosen), generator(seed, identity)
        wave = disturb(engines.speak(voice, text, rng), conditions, bank, rng)
        soundfile.write(folder / f"{identity}.flac", wave, SAMPLE_RATE)
        lines.append(
            {
                "id": identity,
                "audio": f"audio/{name}/{identity}.flac",
                "text": text,
                "language": "en",
                "speaker": voice.name,
                "duration": round(len(wave) / SAMPLE_RATE, 3),
            }
        )
    partial = out / "shards" / f"{name}.partial"
    write_manifest(partial, lines)
    partial.rename(partial.with_suffix(".jsonl"))
    return sum(line["duration"] for line in lines), time.process_time() - started


def shards(texts: list[str], hours: float) -> list[tuple[str, int, list[str]]]:
    """What is to be said: (split, index, texts) of each shard.

    Raises:
        UserError: there are too few sentences.
    """
    work, place = [], 0
    for split, count in HELD_OUT.items():
        work += [(split, i, texts[place + i : place + min(i + SHARD, count)]) for i in range(0, count, SHARD)]
        place += count
    wanted = round(hours * 3600 / SECONDS / SHARD) or 1
    rest = texts[place:]
    if wanted * SHARD > len(rest):
        raise UserError(f"--hours {hours:g}: the sentences are enough for {len(rest) * SECONDS / 3600:.0f} hours")
    work += [("train", i, rest[i * SHARD : (i + 1) * SHARD]) for i in range(wanted)]
    return work


def build(out: Path, texts: list[str], hours: float, jobs: int, seed: int) -> tuple[float, float]:
    """Make the shards that are missing, then the manifests; returns seconds of speech and CPU time of what was made.

    Raises:
        UserError: there are too few sentences, or the folder was made with another seed.
    """
    (out / "shards").mkdir(parents=True, exist_ok=True)
    mark = out / "seed.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8") != str(seed):
        raise UserError(f"{out}: was made with another --seed; choose another folder")
    mark.write_text(str(seed), encoding="utf-8")
    work = shards(texts, hours)
    done = [out / "shards" / f"{split}-{index:03d}.jsonl" for split, index, _ in work]
    missing = [item for item, path in zip(work, done, strict=True) if not path.is_file()]
    spoken = used = 0.0
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns) as progress,
        ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool,
    ):
        task = progress.add_task("shards", total=len(work), completed=len(work) - len(missing))
        for made in as_completed([pool.submit(make_shard, out, *item, seed) for item in missing]):
            seconds, cpu = made.result()
            spoken, used = spoken + seconds, used + cpu
            progress.advance(task)
    for split in ("train", *HELD_OUT):
        parts = [path for (of, _, _), path in zip(work, done, strict=True) if of == split]
        lines = [json.loads(line) for path in parts for line in path.read_text(encoding="utf-8").splitlines()]
        write_manifest(out / f"{split}.jsonl", lines)
        print(f"{split}: {len(lines):,} utterances, {sum(line['duration'] for line in lines) / 3600:.2f} h")
    return spoken, used


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.general_speech", description=__doc__)
    parser.add_argument("--hours", type=float, required=True, help="of training speech")
    parser.add_argument("--wordnet", type=Path, default=Path("build/wordnet"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        texts = wordnet.sentences(arguments.wordnet, arguments.seed)
        spoken, used = build(arguments.out, texts, arguments.hours, arguments.jobs, arguments.seed)
    except UserError as error:
        raise SystemExit(str(error)) from error
    if used:
        print(f"made {spoken / 3600:.2f} h of speech in {used / 3600:.2f} CPU hours: {spoken / used:.0f} × real time")


if __name__ == "__main__":
    main()
