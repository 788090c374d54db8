"""Builds the demo speech codec: `python -m assets.build.codec [--out assets/tts_codec]`.

Sentences of the grammar, said by the voices of the TTS demo without noise or room, train the network; further sentences
measure it (`assets.build.codec_report`). Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from assets.build import grammar
from assets.build.acoustics import SAMPLE_RATE, Waveform
from assets.build.codec_training import Schedule, train
from assets.build.engines import Engines
from assets.build.voices import NeuralVoice
from speech.codecs.demo.codec import save_model
from speech.codecs.demo.network import DemoCodecConfig, DemoCodecModel

TTS_VOICES: tuple[NeuralVoice, ...] = (
    NeuralVoice("tts-f1", 1.15, 0.98, 1.0),
    NeuralVoice("tts-f2", 1.15, 1.18, 1.07),
    NeuralVoice("tts-m1", 1.15, 0.62, 0.9),
    NeuralVoice("tts-m2", 1.15, 0.75, 0.95),
)
"""Who speaks in the TTS demo: two women and two men, by pitch and length of the vocal tract."""
TRAIN_UTTERANCES, TEST_UTTERANCES = 640, 120


@dataclass(frozen=True)
class Spoken:
    """A clean utterance at SAMPLE_RATE."""

    text: str
    voice: NeuralVoice
    wave: Waveform


def speak(texts: list[str], seed: int) -> list[Spoken]:
    """Each text by the next voice in turn."""
    engines, result = Engines(), []
    for index, text in enumerate(texts):
        voice = TTS_VOICES[index % len(TTS_VOICES)]
        wave = engines.speak(voice, text, np.random.default_rng([seed, index]))
        result.append(Spoken(text, voice, wave))
    return result


def sentences(seed: int) -> tuple[list[str], list[str]]:
    """Different texts to train on and to measure with."""
    texts = grammar.distinct(TRAIN_UTTERANCES + TEST_UTTERANCES, grammar.english, random.Random(f"{seed} codec"))
    plain = [sentence.text for sentence in texts]
    return plain[:TRAIN_UTTERANCES], plain[TRAIN_UTTERANCES:]


def build(out: Path, seed: int, schedule: Schedule) -> None:
    """Make the codec in a folder beside `out` that replaces it at the end."""
    started = time.perf_counter()
    spoken = speak(sentences(seed)[0], seed)
    seconds = sum(len(item.wave) for item in spoken) / SAMPLE_RATE
    print(f"{len(spoken)} utterances, {seconds / 60:.1f} min of speech in {time.perf_counter() - started:.0f} s")
    torch.manual_seed(seed)
    model = DemoCodecModel(DemoCodecConfig())
    curve = train(model, [item.wave for item in spoken], schedule)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(model, partial)
    (partial / "training.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    size = sum(file.stat().st_size for file in out.iterdir())
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {count:,} parameters, {size:,} bytes in {time.perf_counter() - started:.0f} s")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.codec", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("assets/tts_codec"))
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    build(arguments.out, arguments.seed, Schedule(seed=arguments.seed))


if __name__ == "__main__":
    main()
