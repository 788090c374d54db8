"""Builds the embedded speech corpus: `python -m assets.build.speech [--out assets/speech]`.

Everything follows from the seed: sentences, voices, rooms, noises. (espeak-ng carries a little state from one
sentence to the next, so a build with `--limit` is no exact excerpt of the whole.) The corpus is made in a folder
beside `--out` that replaces it at the end, so that an interrupted build leaves the old one alone.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from assets.build import acoustics, grammar, opus, report, texts
from assets.build.acoustics import SAMPLE_RATE, Waveform
from assets.build.engines import Engines
from assets.build.voices import SFT, TEST, TRAIN, VALID, Voice

BABBLE_UTTERANCES = 24  # per split, said by the split's own voices and stored nowhere
LEVEL_DBFS, LEVEL_SPREAD_DB = -23.0, 1.5
COMPRESSION_LEVEL = 0.98  # about 11 kbit/s; a little less, and the codec stops storing what lies above 4 kHz


@dataclass(frozen=True)
class Split:
    """Who speaks in a part of the corpus, how many utterances, in which conditions."""

    name: str
    voices: tuple[Voice, ...]
    utterances: int
    snr_db: tuple[float, float]
    reverberant_share: float


SPLITS = (
    Split("sft", SFT, 2400, (15.0, 30.0), 0.0),
    Split("train", TRAIN, 1600, (3.0, 18.0), 0.5),
    Split("valid", VALID, 160, (3.0, 18.0), 0.5),
    Split("test", TEST, 440, (3.0, 18.0), 0.5),
)
OWN_FILES = {"audio", "README.md", "stats.json"} | {f"{split.name}.jsonl" for split in SPLITS}


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers for one thing of the corpus, independent of those for any other."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def babble_bank(split: Split, engines: Engines, seed: int) -> list[Waveform]:
    """Clean utterances of the split's voices that get mixed into background talk."""
    rng = random.Random(f"{seed} babble {split.name}")
    voices = split.voices
    bank = []
    for index in range(BABBLE_UTTERANCES):
        voice = voices[index % len(voices)]
        sentence = grammar.english(rng) if voice.language == "en" else grammar.mandarin(rng)
        bank.append(engines.speak(voice, sentence.text, generator(seed, f"babble {split.name} {index}")))
    return bank


def disturb(speech: Waveform, split: Split, bank: list[Waveform], rng: np.random.Generator) -> Waveform:
    """Put clean speech into the split's conditions: perhaps a room, one of three noises, a level."""
    waveform = acoustics.pad(speech, rng)
    if rng.random() < split.reverberant_share:
        waveform = acoustics.reverberate(waveform, rng)
    kind = rng.choice(["white", "pink", "babble"], p=[0.25, 0.4, 0.35])
    if kind == "babble":
        noise = acoustics.babble(len(waveform), bank, rng)
    else:
        noise = (acoustics.white if kind == "white" else acoustics.pink)(len(waveform), rng)
    waveform = acoustics.mix(waveform, noise, rng.uniform(*split.snr_db))
    return acoustics.set_level(waveform, LEVEL_DBFS + rng.uniform(-LEVEL_SPREAD_DB, LEVEL_SPREAD_DB))


def cast(sentences: list[grammar.Sentence], voices: tuple[Voice, ...], rng: random.Random) -> list[Voice]:
    """A voice of the right language for each sentence, all voices of a language equally often."""
    turns: dict[str, list[Voice]] = {"en": [], "zh": []}
    result = []
    for sentence in sentences:
        if not turns[sentence.language]:
            turns[sentence.language] = [voice for voice in voices if voice.language == sentence.language]
            rng.shuffle(turns[sentence.language])
        result.append(turns[sentence.language].pop())
    return result


def write_split(
    split: Split,
    sentences: list[grammar.Sentence],
    engines: Engines,
    folder: Path,
    seed: int,
    suffix: str = ".opus",
) -> Iterator[dict[str, Any]]:
    """Write the audio of one split; yields the line of its manifest for each utterance.

    `suffix` says the format: `.opus` is small and slow to write, `.flac` the reverse.
    """
    (folder / "audio" / split.name).mkdir(parents=True)
    bank = babble_bank(split, engines, seed)
    voices = cast(sentences, split.voices, random.Random(f"{seed} cast {split.name}"))
    for index, (sentence, voice) in enumerate(zip(sentences, voices, strict=True)):
        identity = f"{split.name}-{index:04d}"
        rng = generator(seed, identity)
        waveform = disturb(engines.speak(voice, sentence.text, rng), split, bank, rng)
        path = Path("audio") / split.name / (identity + suffix)
        if suffix == ".opus":
            opus.write(folder / path, waveform, zlib.crc32(identity.encode()), COMPRESSION_LEVEL)
        else:
            soundfile.write(folder / path, waveform, SAMPLE_RATE)
        line: dict[str, Any] = {
            "id": identity,
            "audio": path.as_posix(),
            "text": sentence.text,
            "language": sentence.language,
            "speaker": voice.name,
            "duration": round(len(waveform) / SAMPLE_RATE, 3),
        }
        if sentence.keywords:
            line["keywords"] = list(sentence.keywords)
        yield line


def write_manifest(path: Path, lines: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.write_text(
        "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8"
    )


def build(out: Path, seed: int, limit: int | None) -> dict[str, Any]:
    """Make the whole corpus (or `limit` utterances of each split) in `out`; returns its statistics."""
    if out.exists() and not {entry.name for entry in out.iterdir()} <= OWN_FILES:
        raise SystemExit(f"{out} holds other things than a corpus; choose another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    # Supervised speech is general; the domain of all that reinforcement learning sees is the household.
    said = [texts.general(seed)[0], *texts.household(seed, [split.utterances for split in SPLITS[1:]])]
    engines = Engines()
    manifests: dict[str, list[dict[str, Any]]] = {}
    columns = (TextColumn("{task.description:>6}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for split, sentences in zip(SPLITS, said, strict=True):
            sentences = sentences[:limit]
            task = progress.add_task(split.name, total=len(sentences))
            lines = manifests[split.name] = []
            for line in write_split(split, sentences, engines, partial, seed):
                lines.append(line)
                progress.advance(task)
            write_manifest(partial / f"{split.name}.jsonl", lines)
    statistics = report.statistics(partial, manifests, seed)
    report.write(partial, statistics)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return statistics


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.speech", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("assets/speech"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="utterances of each split, for a quick trial")
    arguments = parser.parse_args()
    started = time.perf_counter()
    statistics = build(arguments.out, arguments.seed, arguments.limit)
    print(report.table(statistics))
    print(f"{arguments.out}: {statistics['bytes']:,} bytes in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
