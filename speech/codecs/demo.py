"""The embedded demo codec: one token for each 30 ms of speech, trained by our own recipe (`assets/build/codec.py`).

Each token is one entry of a learned codebook. It says, together with its neighbours, what the spectrum, the pitch and
the voicing of its piece of time are: content, prosody and voice in one. There are no other tokens, so every sequence is
as good as any other to the decoder, and the number of tokens is the duration.
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

from speech.codecs import pitch, vocoder
from speech.codecs.base import Codec
from speech.codecs.checks import check_tokens, check_waves, read_json
from speech.codecs.demo_model import DemoCodecConfig, DemoCodecModel
from speech.errors import UserError

LEVEL = 0.07
"""RMS that speech is brought to before it is encoded: −23 dB of full scale."""
QUIETEST = 1e-3
"""RMS below which a waveform is taken for silence and not amplified."""
PERIODIC = (0.4, 0.95)
"""Correlation at which a frame starts to be, and is entirely, voiced."""


class Features(NamedTuple):
    """What the encoder hears: log power envelope (frames, BANDS), pitch in Hz (frames,), voicing 0 … 1 (frames,)."""

    envelope: torch.Tensor
    hz: torch.Tensor
    strength: torch.Tensor


def analyse(wave: np.ndarray) -> Features:
    """Waveform (frames · HOP,) → features of each frame."""
    frames = len(wave) // vocoder.HOP
    hz, correlation = pitch.track(wave, vocoder.SAMPLE_RATE, vocoder.HOP, frames)
    strength = np.clip((correlation - PERIODIC[0]) / (PERIODIC[1] - PERIODIC[0]), 0, 1)
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
        self._samples = config.stride * vocoder.HOP
        self.token_rate = self.sample_rate / self._samples
        self.size = config.size

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        """See `Codec.encode`. A token for each started piece of time; the level of the waveform is lost."""
        check_waves(waves)
        return [self._encode(np.asarray(wave, np.float32)) for wave in waves]

    def _encode(self, wave: np.ndarray) -> list[int]:
        loud = np.abs(wave) > 0.02 * np.abs(wave).max()
        level = float(np.sqrt(np.mean(np.square(wave[loud], dtype=np.float64)))) if loud.any() else 0.0
        wave = np.pad(wave * np.float32(LEVEL / max(level, QUIETEST)), (0, -len(wave) % self._samples))
        codes = self.model.encode(*(part[None] for part in analyse(wave)))
        return self.model.quantise(codes)[0].tolist()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Codec.decode`. The tokens carry the voice, so `voices` is ignored."""
        check_tokens(tokens, self.size)
        # One by one: small enough, and so a waveform is the same to the last bit whatever it is decoded with.
        return [self._decode(ids) for ids in tokens]

    def _decode(self, ids: Sequence[int]) -> np.ndarray:
        if not len(ids):
            return np.zeros(0, np.float32)
        controls = self.model.decode(self.model.codebook[torch.tensor(ids)][None])
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
