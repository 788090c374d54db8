"""Speech for the TTS demo: `python -m assets.build.tts_speech [--out assets/tts_speech]`.

Clean speech of four pseudo-speakers. Two things come out of it:

- `assets/tts_speech`, shipped: the texts of `train`, `valid` and `test` (household sentences, which nobody recorded)
  and a few recordings of each voice as their prompts;
- `build/tts_speech`, not shipped: recordings to learn from. `household.jsonl`, the domain of the demo, is for the model
  that speaks; `run_on.jsonl`, for the same, are household recordings of which most go on into what was said next, as a
  careless segmentation leaves them; `sft.jsonl`, of which less than half is household, for the reward model;
  `judge.jsonl` for the training judge, which must read what the codec makes of speech as well as the original.

No text of `valid` and `test` is said anywhere else, and no prompt of theirs is one of training.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.progress import track

from assets.build import acoustics, grammar, opus
from assets.build.acoustics import SAMPLE_RATE, Waveform
from assets.build.codec import TTS_VOICES
from assets.build.engines import Engines
from assets.build.grammar import Writer
from assets.build.speech import LEVEL_DBFS, generator, write_manifest
from assets.build.voices import NeuralVoice
from speech.codecs import load_codec

CORPUS, RECORDINGS = Path("assets/tts_speech"), Path("build/tts_speech")
GENERAL, HOUSEHOLD = 4000, 2000  # recorded sentences
MORE = 6000  # of each of both, written last: with few sentences the model that speaks learns them by heart
LAST = 16_000  # household sentences for the model that speaks alone
RUN_ON = 24_000  # recordings for the model that speaks alone, which do not end with their text
RUN_ON_SHARE = 0.6  # of them; the others end where they should
RUN_ON_WORDS = (2, 4)  # what is still heard of the next sentence
VALID_RECORDINGS = 120
TRAIN, VALID, TEST = 800, 60, 120  # texts to be spoken
PROMPTS = {"train": 6, "valid": 2, "test": 4}  # recordings of each voice
EDGE_S = 0.12  # silence at both ends
BATCH = 32
PROMPT_COMPRESSION = 0.9  # prompts are few, so they are stored at a higher rate than the ASR corpus
GENDERS = {voice.name: voice.name.removeprefix("tts-")[0] for voice in TTS_VOICES}


@dataclass
class Texts:
    """Who says what; no text occurs twice, except in `run_on`.

    Attributes:
        recorded: for all three models, in the order of their recordings.
        last: recorded after these, for the model that speaks alone.
        run_on: recorded last, for the same: texts, each with the words that its recording goes on with, or none.
        household: what of both is of the demo's domain.
    """

    recorded: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    run_on: list[tuple[str, str]] = field(default_factory=list)
    household: set[str] = field(default_factory=set)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)


def write_texts(seed: int) -> Texts:
    """Sentences for every part, from the seed alone."""
    rng = random.Random(f"{seed} tts")
    household = partial(grammar.english, templates=grammar.HOUSEHOLD_TEMPLATES, random_share=0.0)
    said = len(TTS_VOICES) * sum(PROMPTS.values())
    first = [s.text for s in grammar.distinct(HOUSEHOLD + TRAIN + VALID + TEST, household, rng)]
    second = [s.text for s in grammar.distinct(GENERAL + said, grammar.english, rng, set(first))]
    rng.shuffle(first)  # short sentences, of which there are few, are written early
    rng.shuffle(second)
    texts = Texts()
    for name, count in (("test", TEST), ("valid", VALID), ("train", TRAIN)):
        texts.splits[name], first = first[:count], first[count:]
    for name, count in PROMPTS.items():
        count *= len(TTS_VOICES)
        texts.prompts[name], second = second[:count], second[count:]
    texts.recorded = first + second
    texts.household |= set(first)
    rng.shuffle(texts.recorded)
    unsaid = set(itertools.chain(*texts.splits.values(), *texts.prompts.values()))
    taken = {*texts.recorded, *unsaid}
    more: list[str] = []
    for write in (household, grammar.english):
        more += [s.text for s in grammar.distinct(MORE, write, rng, taken)]
        taken |= set(more)
    texts.household |= set(more[:MORE])
    rng.shuffle(more)
    texts.recorded += more
    texts.last = [s.text for s in grammar.distinct(LAST, household, random.Random(f"{seed} tts last"), taken)]
    random.Random(f"{seed} tts last order").shuffle(texts.last)
    texts.household |= set(texts.last)
    texts.run_on = write_run_on(household, random.Random(f"{seed} tts run on"), unsaid)
    return texts


def write_run_on(write: Writer, rng: random.Random, unsaid: set[str]) -> list[tuple[str, str]]:
    """Texts as often as the domain has them, most of them with the beginning of another one.

    Of distinct texts, as the other recordings have, nine in ten would by now be numbers: all else has been said.
    """
    pairs: list[tuple[str, str]] = []
    while len(pairs) < RUN_ON:
        text, other = write(rng).text, write(rng).text
        words = " ".join(other.split()[: rng.randint(*RUN_ON_WORDS)]) if rng.random() < RUN_ON_SHARE else ""
        if text not in unsaid and words not in unsaid:
            pairs.append((text, words))
    return pairs


def say(engines: Engines, voice: NeuralVoice, text: str, seed: int, identity: str) -> Waveform:
    """Clean speech at one level with a little silence at its ends."""
    wave = engines.speak(voice, text, generator(seed, identity))
    return np.pad(acoustics.set_level(wave, LEVEL_DBFS), round(EDGE_S * SAMPLE_RATE)).astype(np.float32)


def record(engines: Engines, voice: NeuralVoice, text: str, more: str, seed: int, index: int) -> Waveform:
    """A recording of `text` that goes on with the words `more`, if there are any."""
    wave = say(engines, voice, text, seed, f"recording {index}")
    return np.concatenate([wave, say(engines, voice, more, seed, f"run on {index}")]) if more else wave


def build_corpus(out: Path, texts: Texts, engines: Engines, seed: int) -> None:
    """What is shipped: prompts as Opus files, and manifests of texts."""
    partial_ = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_, ignore_errors=True)
    (partial_ / "audio").mkdir(parents=True)
    for split, sentences in texts.splits.items():
        prompts: list[list[dict[str, Any]]] = []
        for index, text in enumerate(texts.prompts[split]):
            voice, name = TTS_VOICES[index % len(TTS_VOICES)], f"{split}-{index:03d}"
            path = Path("audio") / f"{name}.opus"
            wave = say(engines, voice, text, seed, f"prompt {name}")
            opus.write(partial_ / path, wave, zlib.crc32(name.encode()), PROMPT_COMPRESSION)
            if index < len(TTS_VOICES):
                prompts.append([])
            prompts[index % len(TTS_VOICES)].append({"prompt_audio": path.as_posix(), "prompt_text": text})
        lines = []
        for index, text in enumerate(sentences):
            place = index % len(TTS_VOICES)
            prompt = prompts[place][index // len(TTS_VOICES) % len(prompts[place])]
            attributes = {"voice": TTS_VOICES[place].name, "gender": GENDERS[TTS_VOICES[place].name]}
            lines.append({"id": f"tts-{split}-{index:03d}", "text": text, "language": "en", **prompt})
            lines[-1] |= {"speaker": TTS_VOICES[place].name, "attributes": attributes}
        write_manifest(partial_ / f"{split}.jsonl", lines)
    shutil.rmtree(out, ignore_errors=True)
    partial_.rename(out)


def build_recordings(
    out: Path, codec_folder: Path, texts: Texts, engines: Engines, seed: int, limit: int | None = None
) -> None:
    """What is learned from: each text as spoken and, if it is one of `recorded`, as the codec gives it back."""
    partial_ = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_, ignore_errors=True)
    for folder in ("audio", "decoded"):
        (partial_ / folder).mkdir(parents=True)
    codec = load_codec(codec_folder)
    recorded = texts.recorded[:limit]
    said = [*((text, "") for text in texts.recorded + texts.last), *texts.run_on][:limit]
    lines: list[dict[str, Any]] = []
    rates: list[float] = []
    for start in track(range(0, len(said), BATCH), "recordings"):
        part = [(i, *said[i], TTS_VOICES[i % len(TTS_VOICES)]) for i in range(start, min(start + BATCH, len(said)))]
        waves = [record(engines, voice, text, more, seed, i) for i, text, more, voice in part]
        for (i, text, _, voice), wave in zip(part, waves, strict=True):
            name = f"tts-{i:05d}.flac"
            soundfile.write(partial_ / "audio" / name, wave, SAMPLE_RATE)
            rates.append(len(text) / (len(wave) / SAMPLE_RATE))
            lines.append(
                {"id": f"tts-{i:05d}", "audio": f"audio/{name}", "text": text, "language": "en", "speaker": voice.name}
            )
        heard = waves[: max(0, len(recorded) - start)]
        if heard:
            decoded = codec.decode(codec.encode(heard), [[]] * len(heard))
            for line, wave in zip(lines[start:], decoded, strict=False):
                soundfile.write(partial_ / line["audio"].replace("audio", "decoded"), wave, SAMPLE_RATE)
    write_manifests(partial_, lines, rates, len(recorded), texts, seed)
    shutil.rmtree(out, ignore_errors=True)
    partial_.rename(out)


def write_manifests(
    folder: Path, lines: Sequence[dict[str, Any]], rates: Sequence[float], decoded: int, texts: Texts, seed: int
) -> None:
    """Who learns from which recordings.

    Args:
        rates: of each recording, in characters a second; half of those decoded are called fast.
        decoded: so many, the first ones, were decoded as well.
    """
    median = statistics.median(rates[:decoded])
    rng = random.Random(f"{seed} tts prompts")
    by_voice = {v.name: [line for line in lines[:decoded] if line["speaker"] == v.name] for v in TTS_VOICES}
    learned = []
    for line, rate in zip(lines, rates, strict=True):
        other = rng.choice([o for o in by_voice[line["speaker"]][:200] if o is not line])
        rated = "fast" if rate > median else "slow"
        attributes = {"voice": line["speaker"], "gender": GENDERS[line["speaker"]], "rate": rated}
        prompt = {"prompt_audio": other["audio"], "prompt_text": other["text"]}
        learned.append(line | prompt | {"attributes": attributes})
    held = min(VALID_RECORDINGS, decoded // 50)
    write_manifest(folder / "valid.jsonl", learned[:held])
    write_manifest(folder / "sft.jsonl", learned[held:decoded])
    ends = len(texts.recorded + texts.last)
    write_manifest(folder / "household.jsonl", [line for line in learned[held:ends] if line["text"] in texts.household])
    write_manifest(folder / "run_on.jsonl", learned[ends:])
    judged = [
        {k: v for k, v in line.items() if k not in ("prompt_audio", "prompt_text", "attributes")}
        | {"id": f"{line['id']}-{kind}", "audio": line["audio"].replace("audio", kind)}
        for line in learned[:decoded]
        for kind in ("audio", "decoded")
    ]
    write_manifest(folder / "judge-valid.jsonl", [line for line in judged[: 2 * held] if "decoded" in line["id"]])
    write_manifest(folder / "judge.jsonl", judged[2 * held :])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.tts_speech", description=__doc__)
    parser.add_argument("--out", type=Path, default=CORPUS, help="what is shipped (default: %(default)s)")
    parser.add_argument("--recordings", type=Path, default=RECORDINGS, help="the rest (default: %(default)s)")
    parser.add_argument("--codec", type=Path, default=Path("assets/tts_codec"))
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="recordings, for a quick trial")
    arguments = parser.parse_args()
    started = time.perf_counter()
    texts, engines = write_texts(arguments.seed), Engines()
    build_corpus(arguments.out, texts, engines, arguments.seed)
    build_recordings(arguments.recordings, arguments.codec, texts, engines, arguments.seed, arguments.limit)
    print(f"{arguments.out}, {arguments.recordings}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
