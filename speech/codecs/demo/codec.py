"""The embedded demo codec, trained by our own recipe (`assets/build/codec.py`): 62.5 tokens for a second of speech.

Three kinds of tokens, in one row of ids (K entries in each of two codebooks, then the levels of pitch):

- **sound**, 0 … K − 1: begins a new piece of 40 ms and says roughly what its spectral envelope and voicing are;
- **detail**, K … 2K − 1: refines the piece that the last sound token began, replacing an earlier detail;
- **pitch**, 2K …: the pitch of all pieces that follow, up to the next; levels are a semitone apart.

`encode` writes pitch, sound, detail, sound, detail for each 80 ms. Every other order decodes too: a piece without
detail stays rough, detail before any sound means nothing, speech without pitch begins at START_LEVEL. The number of
sound tokens alone is the duration. Who speaks is heard from all three: there is no token for the voice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from speech.codecs.base import Codec
from speech.codecs.checks import check_tokens, check_waves, read_json
from speech.codecs.demo import pitch, vocoder
from speech.codecs.demo.network import LOG_HZ_CENTRE, DemoCodecConfig, DemoCodecModel
from speech.errors import UserError

LEVEL = 0.07
"""RMS that speech is brought to before it is encoded: −23 dB of full scale."""
QUIETEST = 1e-3
"""RMS below which a waveform is taken for silence and not amplified."""
PERIODIC = (0.4, 0.95)
"""Correlation at which a frame starts to be, and is entirely, voiced."""

START_LEVEL = 14
"""Level of pitch (about 145 Hz) of speech that begins without one."""
VOICED = 0.3
"""Voicing above which a frame's pitch is believed."""


class Features(NamedTuple):
    """What the encoder hears: log power envelope (frames, BANDS), pitch in Hz (frames,), voicing 0 … 1 (frames,)."""

    envelope: torch.Tensor
    hz: torch.Tensor
    strength: torch.Tensor


def to_level(wave: np.ndarray) -> np.ndarray:
    """The waveform (samples,), scaled so that the RMS of where it is loud is LEVEL."""
    size = np.abs(wave)
    loud = wave[size > 0.02 * size.max()]
    rms = float(np.sqrt(np.mean(np.square(loud, dtype=np.float64)))) if len(loud) else 0.0
    return wave * np.float32(LEVEL / max(rms, QUIETEST))


def analyse(wave: np.ndarray) -> Features:
    """Waveform (frames · HOP,) → features of each frame."""
    frames = len(wave) // vocoder.HOP
    hz, correlation = pitch.track(wave, vocoder.SAMPLE_RATE, vocoder.HOP, frames)
    strength = np.clip((correlation - PERIODIC[0]) / (PERIODIC[1] - PERIODIC[0]), 0, 1)
    voiced = np.flatnonzero(strength > VOICED)
    if len(voiced):  # where nothing is voiced, the curve goes straight on to the next voice
        hz = np.exp(np.interp(np.arange(frames), voiced, np.log(hz[voiced]))).astype(np.float32)
    else:
        hz = np.full(frames, np.exp(LOG_HZ_CENTRE), np.float32)
    pitches = torch.from_numpy(hz)
    envelope = vocoder.envelope(torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None], pitches[None])[0]
    return Features(envelope, pitches, torch.from_numpy(strength))


class DemoCodec(Codec):
    name = "demo"
    model_types = ("speechrl_demo_codec",)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.model = load_model(path)
        config = self.model.config
        self.sample_rate = vocoder.SAMPLE_RATE
        self._codes, self._codebooks = config.codes, config.codebooks
        self._samples = config.stride * config.codes_per_pitch * vocoder.HOP
        self.token_rate = self.sample_rate / self._samples * (1 + config.codes_per_pitch * config.codebooks)
        self._first_pitch = config.codes * config.codebooks
        self.size = self._first_pitch + config.pitches

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        """See `Codec.encode`. Padded with silence to a whole number of stretches of 80 ms; the level is lost."""
        check_waves(waves)
        return [self._encode(np.asarray(wave, np.float32)) for wave in waves]

    def _encode(self, wave: np.ndarray) -> list[int]:
        features = analyse(np.pad(to_level(wave), (0, -len(wave) % self._samples)))
        ids = self.model.quantise(self.model.encode(*(part[None] for part in features)))[0]
        ids = ids + self._codes * torch.arange(self._codebooks)
        levels = self.model.pitch_levels(features.hz[None])[0] + self._first_pitch
        return torch.cat([levels[:, None], ids.view(len(levels), -1)], dim=1).flatten().tolist()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Codec.decode`. The tokens carry the voice, so `voices` is ignored."""
        check_tokens(tokens, self.size)
        # One by one: small enough, and so a waveform is the same to the last bit whatever it is decoded with.
        return [self._decode(ids) for ids in tokens]

    def features(self) -> np.ndarray:
        """See `Codec.features`: the codebooks' vectors; of pitch nothing is said."""
        table = np.full((self.size, self.model.config.code_dim), np.nan, np.float32)
        table[: self._first_pitch] = self.model.codebook.detach().flatten(0, 1).numpy()
        return table

    def _decode(self, ids: Sequence[int]) -> np.ndarray:
        pieces: list[list[int]] = []
        levels: list[int] = []
        level = START_LEVEL
        for token in ids:
            codebook, entry = divmod(token, self._codes)
            if token >= self._first_pitch:
                level = token - self._first_pitch
            elif codebook == 0:
                pieces.append([entry, *[-1] * (self._codebooks - 1)])
                levels.append(level)
            elif pieces:
                pieces[-1][codebook] = entry
        if not pieces:
            return np.zeros(0, np.float32)
        controls = self.model.decode(self.model.look_up(torch.tensor([pieces])), torch.tensor([levels]))
        wave = vocoder.synthesise(controls.hz, controls.harmonic, controls.noisy)[0]
        return wave.clamp(-1, 1).numpy()


def load_model(path: Path) -> DemoCodecModel:
    """The network of a folder, in eval mode.

    Raises:
        UserError: a file is missing or damaged, or weights and config are of different sizes.
    """
    config_path, weights_path = path / "config.json", path / "model.safetensors"
    values = read_json(config_path)
    if values.pop("model_type", None) not in DemoCodec.model_types:
        raise UserError(f"{config_path}: model_type is not {DemoCodec.model_types[0]!r}")
    known = {field.name for field in fields(DemoCodecConfig)}
    if values.keys() != known or not all(isinstance(value, int) and value > 0 for value in values.values()):
        raise UserError(f"{config_path}: needs exactly {', '.join(sorted(known))}, all positive whole numbers")
    model = DemoCodecModel(DemoCodecConfig(**values)).eval()
    if not weights_path.is_file():
        raise UserError(f"{weights_path}: no such file")
    try:
        # Stored in half the bits; small networks on a CPU compute in single precision.
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights_path).items()})
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{weights_path}: does not fit {config_path.name}: {error}") from error
    return model


def save_model(model: DemoCodecModel, path: Path) -> None:
    """Write what `load_model` reads, in an existing folder."""
    values = {"model_type": DemoCodec.model_types[0], **asdict(model.config)}
    (path / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path / "model.safetensors")
