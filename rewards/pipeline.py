"""Tokens → waves → models → rewards, for a whole call of groups at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile

from rewards.compose import RewardComposition
from rewards.config import RewardConfig
from rewards.listening.group import Failure, Sound, SoundBatch, SoundGroup, map_isolating_failures, timed
from rewards.listening.models import SoundModels
from speech.codecs.base import Codec
from speech.records import Group, Trajectory

LONGEST_NAME = 100
"""Bytes of an id in the name of a file, its letters beyond ASCII written as three bytes or more each: a longer one is
cut and told apart by a digest. File systems take 255 bytes a name, eCryptfs 143, and suffixes follow."""

CodecFactory = Callable[[], Codec]
"""Builds the run's codec inside the process that will use it; picklable, such as a `functools.partial`."""


class SoundPipeline:
    """Scores groups by rewards on sound, and by any others.

    Only token ids come in and only numbers go out: waves stay in the process that made them. Nothing is decoded, and no
    codec is loaded, where no reward scores sound.

    Args:
        config: rewards, their models, and the batch size.
        codec: builds the codec whose tokens the trajectories hold.

    Attributes:
        composition: the rewards.
        models: behind the rewards, loaded when `load` is called or when first asked for.
        seconds: wall-clock time by stage since it was made: `decode`, `judge`, `second_judge`, `speaker`, `voice`,
            `pitch`, `quality`, `total`.

    Raises:
        UserError: a configuration error, found without loading a model.
    """

    def __init__(self, config: RewardConfig, codec: CodecFactory) -> None:
        self.composition = RewardComposition(config)
        self.models = SoundModels(config.sound)
        self.models.check(self.composition.needs)
        self.seconds: Counter[str] = Counter()
        self._config = config.sound
        self._build_codec = codec

    @cached_property
    def codec(self) -> Codec:
        """The codec, loaded when first asked for.

        Raises:
            UserError: it cannot be loaded, or nothing makes sound of its tokens.
        """
        codec = self._build_codec()
        codec.check_decoder()
        return codec

    def load(self) -> None:
        """Load the codec and the models that the rewards need.

        Raises:
            UserError: a model or a package is missing.
        """
        if self.composition.on_sound:
            _ = self.codec
            self.models.load(self.composition.needs)

    def score(self, groups: Sequence[Group], folder: Path | None = None) -> list[Group]:
        """The groups with rewards, in order. Never raises on behalf of a sample.

        Args:
            folder: where every sample's wave is written, by `wave_path`; None writes none.
        """
        with timed(self.seconds, "total"):
            if not self.composition.on_sound and folder is None:
                return [self.composition.score(group) for group in groups]
            heard = self.listen(groups)
            if folder is not None:
                write_waves(heard, folder)
            return [self.composition.score(sound.group, sound) for sound in heard]

    def listen(self, groups: Sequence[Group]) -> list[SoundGroup]:
        """The groups as sound, in order: all samples decoded, in batches of similar length. Their prompt voices are
        decoded together when the first of them is asked for."""
        samples = [(t, group) for group in groups for t in group.trajectories]
        decoded = self._decode([(t.speech_tokens, group.voice_tokens, _finished(t)) for t, group in samples])
        rest = iter(decoded)
        rows = [tuple(next(rest) for _ in group.trajectories) for group in groups]

        def voices(tokens: Sequence[tuple[int, ...]]) -> list[Sound | Failure]:
            return self._decode([(voice, voice, True) for voice in tokens])

        batch = SoundBatch(groups, rows, voices, self.models, self._config, self.seconds)
        firsts = np.cumsum([0, *(len(row) for row in rows)]).tolist()
        return [SoundGroup(group, row, batch, first) for group, row, first in zip(groups, rows, firsts, strict=False)]

    def _decode(self, wanted: Sequence[tuple[tuple[int, ...], tuple[int, ...], bool]]) -> list[Sound | Failure]:
        """Tokens, tokens of the prompt voice, and whether it ended naturally → sound."""
        codec = self.codec  # one that cannot be loaded is no fault of a sample

        def decode(part: Sequence[int]) -> list[Sound]:
            waves = codec.decode([wanted[i][0] for i in part], [wanted[i][1] for i in part])
            return [self._sound(wave, *wanted[i][::2]) for i, wave in zip(part, waves, strict=True)]

        order = sorted(range(len(wanted)), key=lambda i: len(wanted[i][0]))
        with timed(self.seconds, "decode"):
            found = map_isolating_failures(decode, order, "codec", self._config.batch)
        results = dict(zip(order, found, strict=True))
        return [results[i] for i in range(len(wanted))]

    def _sound(self, wave: np.ndarray, tokens: tuple[int, ...], finished: bool) -> Sound:
        if not np.isfinite(wave).all():
            raise ValueError("the decoded wave is not finite")
        return Sound(
            wave=np.clip(wave, -1.0, 1.0).astype(np.float32, copy=False),
            sample_rate=self.codec.sample_rate,
            tokens=tokens,
            token_rate=self.codec.token_rate,
            finished=finished,
            silent=float(np.abs(wave).max(initial=0.0)) < self._config.silence_peak,
        )


def wave_path(folder: Path, group: Group, index: int) -> Path:
    """Where a sample's wave is written: the utterance, the epoch, and the sample's place in its group."""
    prompt = group.prompt
    name = quote(prompt.utterance.id, safe="")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(prompt.utterance.id.encode()).hexdigest()
        name = f"{name[: LONGEST_NAME - 17]}-{digest[:16]}"
    return folder / f"{name}-e{prompt.epoch}-{index}.wav"


def write_waves(groups: Sequence[SoundGroup], folder: Path) -> None:
    """Write every decoded sample as a 16-bit wav file; empty ones too, as files without samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for sound_group in groups:
        for trajectory, sound in zip(sound_group.group.trajectories, sound_group.sounds, strict=True):
            if isinstance(sound, Sound):
                path = wave_path(folder, sound_group.group, trajectory.index)
                soundfile.write(path, sound.wave, sound.sample_rate, subtype="PCM_16")


def _finished(trajectory: Trajectory) -> bool:
    return trajectory.finish_reason == "stop"
