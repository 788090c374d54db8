"""Known audio as speech tokens: a codec that is a tape of recordings, and groups of its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards.config import RewardConfig, RewardItem, SoundConfig
from speech.audio import load_audio
from speech.codecs.base import Codec
from speech.records import FinishReason, Group, Prompt, PromptLayout, Trajectory, Utterance

RATE = 16_000
FRAME = 320
ROOT = Path(__file__).parents[3]
ASR_DEMO = ROOT / "assets" / "asr_demo"


def recordings(count: int, split: str = "test") -> list[Utterance]:
    """The first utterances of the embedded corpus."""
    lines = (ROOT / "assets" / "speech" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [
        Utterance(
            id=row["id"],
            audio=str(ROOT / "assets" / "speech" / row["audio"]),
            text=row["text"],
            language=row["language"],
            speaker=row["speaker"],
            duration=row["duration"],
        )
        for row in rows
    ]


class TapeCodec(Codec):
    """Token i is the i-th 20 ms of a tape on which recordings follow one another: whole frames survive exactly.

    The last token of all is digital silence, `silence`.
    """

    name = "tape"

    def __init__(self, waves: Sequence[np.ndarray]) -> None:
        super().__init__(Path())
        self.sample_rate, self.token_rate = RATE, RATE / FRAME
        padded = [np.pad(wave, (0, -len(wave) % FRAME)) for wave in waves]
        self._tape = np.concatenate([*padded, np.zeros(FRAME)]).reshape(-1, FRAME).astype(np.float32)
        lengths = [len(wave) // FRAME for wave in padded]
        ends = np.cumsum(lengths)
        self.takes = [tuple(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
        self.size = len(self._tape)
        self.silence = self.size - 1
        self.calls: list[int] = []

    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        distance = [((self._tape[None] - wave.reshape(-1, 1, FRAME)) ** 2).sum(-1) for wave in waves]
        return [row.argmin(1).tolist() for row in distance]

    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.calls.append(len(tokens))
        for row in tokens:
            if any(not 0 <= token < self.size for token in row):
                raise ValueError(f"a token outside 0 … {self.size - 1}")
        return [self._tape[list(row)].reshape(-1) if len(row) else np.zeros(0, np.float32) for row in tokens]


def tape_codec(count: int) -> TapeCodec:
    """A tape of the first test recordings; picklable as a factory with `functools.partial`."""
    return TapeCodec([load_audio(utterance, RATE) for utterance in recordings(count)])


def sound_group(
    samples: Sequence[Sequence[int]],
    *,
    text: str = "turn on the light",
    language: str | None = "en",
    finish: FinishReason | Sequence[FinishReason] = "stop",
    voice: Sequence[int] = (),
    past: Sequence[int] = (),
    name: str = "u",
) -> Group:
    finishes: Sequence[FinishReason] = [finish] * len(samples) if isinstance(finish, str) else finish
    trajectories = tuple(
        Trajectory(
            prompt_id=f"0/{name}",
            index=index,
            token_ids=(1,),
            logprobs=(-0.1,),
            version_first=0,
            version_last=0,
            finish_reason=reason,
            seed=index,
            text="",
            speech_tokens=tuple(tokens),
        )
        for index, (tokens, reason) in enumerate(zip(samples, finishes, strict=True))
    )
    utterance = Utterance(id=name, audio="/none.wav", text=text, language=language)
    prompt = Prompt(id=f"0/{name}", utterance=utterance, epoch=0, position=0, seed=1)
    layout = PromptLayout((0,), 0, 0)
    return Group(
        prompt, layout, trajectories, seconds=1.0, peak=0.5, voice_tokens=tuple(voice), past_lengths=tuple(past)
    )


def sound_config(*names: str, sound: SoundConfig | None = None, **options: object) -> RewardConfig:
    """Rewards by name, the first of which takes the options."""
    items = [RewardItem(name, options=dict(options) if i == 0 else {}) for i, name in enumerate(names)]
    return RewardConfig(items, sound=sound or SoundConfig())
