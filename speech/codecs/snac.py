"""SNAC at 24 kHz (Siuzdak et al. 2024, arXiv 2410.14411), whose tokens Orpheus speaks: three codebooks, each twice as
fast as the one before it.

The network is our own writing of the published one, under the parameter names of its checkpoints
(`hubertsiuzdak/snac_24khz`), so that no package is needed. Its 32 and 44 kHz forms, with attention and a fourth
codebook, are refused: no model family here speaks them.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from speech.codecs.base import Codec
from speech.codecs.checks import check_tokens, check_waves, read_json
from speech.errors import UserError

STRIDES = (4, 2, 1)
"""Steps of the encoder that share one entry of each codebook."""

PLACES = ((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3))
"""(codebook, step within the frame) of the seven tokens of a frame, as Orpheus was trained: each entry of a coarse
codebook stands before the finer ones that it covers."""

NOISE_SEED = 0

_SIZES = ("sampling_rate", "encoder_dim", "decoder_dim", "codebook_size", "codebook_dim")


class SnacCodec(Codec):
    """A frame of 4 encoder steps (85.3 ms) is seven tokens. The token at place p of its frame with the code c has the
    id p · codebook_size + c, so an id belongs to one place.

    A sequence with a token out of its place says nothing: no sound is made of it (`decode` raises), and the sample has
    no reward. A last frame that lacks tokens is dropped.

    Raises:
        UserError: a file is missing or damaged, or is of a SNAC of another form.
    """

    name = "snac"
    model_types = ()  # its config.json has none

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        config = read_json(path / "config.json")
        if not self.recognises(config, path):
            raise UserError(f"{path / 'config.json'}: lacks vq_strides; is it a checkpoint of SNAC?")
        strides, window = tuple(config["vq_strides"]), config.get("attn_window_size", 32)
        if strides != STRIDES or window is not None or not config.get("depthwise", True):
            raise UserError(
                f"{path / 'config.json'}: vq_strides {list(strides)} with attn_window_size {window}: only SNAC at "
                f"24 kHz is known here ({list(STRIDES)}, no attention, depthwise)"
            )
        missing = [key for key in (*_SIZES, "encoder_rates", "decoder_rates") if key not in config]
        if missing:
            raise UserError(f"{path / 'config.json'}: lacks {', '.join(missing)}")
        self.model = _Network(config)
        self._load(path)
        self.sample_rate: int = config["sampling_rate"]
        self._codebook_size: int = config["codebook_size"]
        self._frame = math.prod(config["encoder_rates"]) * STRIDES[0]
        self.size = len(PLACES) * self._codebook_size
        self.token_rate = len(PLACES) * self.sample_rate / self._frame

    @classmethod
    def recognises(cls, config: Mapping[str, Any], folder: Path) -> bool:
        return "vq_strides" in config

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        """See `Codec.encode`. The waveform is padded with zeros to whole frames."""
        check_waves(waves)
        return [self._encode(np.asarray(wave, np.float32)) for wave in waves]

    @torch.inference_mode()
    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Codec.decode`. The tokens carry the voice, so `voices` is ignored.

        Raises:
            ValueError: an id is outside 0 … size − 1, or out of its place in the frame.
        """
        check_tokens(tokens, self.size)
        for index, ids in enumerate(tokens):
            for place, token in enumerate(ids):
                if token // self._codebook_size != place % len(PLACES):
                    raise ValueError(
                        f"tokens of utterance {index}: id {token} at position {place} belongs to place "
                        f"{token // self._codebook_size} of a frame, not to place {place % len(PLACES)}"
                    )
        return [self._decode(ids) for ids in tokens]

    def _encode(self, wave: np.ndarray) -> list[int]:
        padded = np.pad(wave, (0, -len(wave) % self._frame))
        codes = self.model.encode(torch.from_numpy(padded)[None, None].to(self._device))
        columns = [
            codes[level].view(-1, STRIDES[0] // STRIDES[level])[:, step] + place * self._codebook_size
            for place, (level, step) in enumerate(PLACES)
        ]
        return torch.stack(columns, dim=1).flatten().tolist()

    def _decode(self, ids: Sequence[int]) -> np.ndarray:
        frames = len(ids) // len(PLACES)
        if not frames:
            return np.zeros(0, np.float32)
        rows = torch.tensor(ids[: frames * len(PLACES)], device=self._device).view(frames, len(PLACES))
        rows = rows % self._codebook_size
        codes = [
            rows[:, [place for place, (own, _) in enumerate(PLACES) if own == level]].flatten()
            for level in range(len(STRIDES))
        ]
        wave = self.model.decode(codes)[0, 0]
        return wave.clamp(-1, 1).float().cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _load(self, path: Path) -> None:
        safe, pickled = path / "model.safetensors", path / "pytorch_model.bin"
        try:
            # The published file is a pickle: of such a file only tensors are read.
            state = load_file(safe) if safe.is_file() else torch.load(pickled, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state)
        except FileNotFoundError as error:
            raise UserError(f"codec folder {path} lacks model.safetensors or pytorch_model.bin") from error
        except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
            raise UserError(f"{path}: snac checkpoint cannot be loaded: {error}") from error
        for module in self.model.modules():
            if hasattr(module, "parametrizations"):
                remove_parametrizations(module, "weight")
        self.model.eval()


class _Network(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        rates = config["encoder_rates"]
        latent = config.get("latent_dim") or config["encoder_dim"] * 2 ** len(rates)
        self.encoder = _Wrapped("block", _encoder(config["encoder_dim"], rates))
        self.quantizer = _Quantisers(latent, config["codebook_size"], config["codebook_dim"])
        decoder = _decoder(latent, config["decoder_dim"], config["decoder_rates"], config.get("noise", True))
        self.decoder = _Wrapped("model", decoder)

    def encode(self, wave: torch.Tensor) -> list[torch.Tensor]:
        """Samples (1, 1, frames · 4 · hop) → codes of each codebook (frames · 4 / stride,)."""
        return self.quantizer.encode(self.encoder(wave))

    def decode(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Codes of each codebook → samples (1, 1, frames · 4 · hop); the same every time."""
        latent = self.quantizer.decode(codes)
        with torch.random.fork_rng(devices=[latent.device] if latent.device.type == "cuda" else []):
            torch.manual_seed(NOISE_SEED)
            wave: torch.Tensor = self.decoder(latent)
        return wave


class _Wrapped(nn.Module):
    """Layers one after the other, under the name that they have in checkpoints."""

    def __init__(self, name: str, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._name = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.get_submodule(self._name)(x)
        return y


class _Quantiser(nn.Module):
    """One codebook, in which entries are found by their direction (ViT-VQGAN, arXiv 2110.04627)."""

    def __init__(self, latent: int, size: int, dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = _conv(latent, dim, 1), _conv(dim, latent, 1)
        self.codebook = nn.Embedding(size, dim)

    def nearest(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, latent, T) → codes (T,)."""
        found = nn.functional.normalize(self.in_proj(latent)[0].T)
        return (found @ nn.functional.normalize(self.codebook.weight).T).argmax(1)

    def entries(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (T,) → (1, latent, T)."""
        entries: torch.Tensor = self.out_proj(self.codebook(codes).T[None])
        return entries


class _Quantisers(nn.Module):
    def __init__(self, latent: int, size: int, dim: int) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(_Quantiser(latent, size, dim) for _ in STRIDES)

    def encode(self, latent: torch.Tensor) -> list[torch.Tensor]:
        codes = []
        for stride, quantiser in zip(STRIDES, self.quantizers, strict=True):
            assert isinstance(quantiser, _Quantiser)
            codes.append(quantiser.nearest(nn.functional.avg_pool1d(latent, stride)))
            latent = latent - quantiser.entries(codes[-1]).repeat_interleave(stride, dim=-1)
        return codes

    def decode(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        latent: torch.Tensor | float = 0.0
        for stride, quantiser, own in zip(STRIDES, self.quantizers, codes, strict=True):
            assert isinstance(quantiser, _Quantiser)
            latent = latent + quantiser.entries(own).repeat_interleave(stride, dim=-1)
        assert isinstance(latent, torch.Tensor)
        return latent


class _Snake(nn.Module):
    """x + sin²(αx)/α (arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)


class _Residual(_Wrapped):
    def __init__(self, channels: int, dilation: int) -> None:
        wide = _conv(channels, channels, 7, dilation=dilation, padding=3 * dilation, groups=channels)
        super().__init__("block", [_Snake(channels), wide, _Snake(channels), _conv(channels, channels, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class _Noise(nn.Module):
    """Gaussian noise, as loud as the channels say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = _conv(channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn((x.shape[0], 1, x.shape[2]), device=x.device, dtype=x.dtype)
        return x + noise * self.linear(x)


def _conv(*shape: int, **options: Any) -> nn.Module:
    return weight_norm(nn.Conv1d(*shape, **options))


def _residuals(channels: int) -> list[nn.Module]:
    return [_Residual(channels, dilation) for dilation in (1, 3, 9)]


def _encoder(channels: int, rates: Sequence[int]) -> list[nn.Module]:
    layers = [_conv(1, channels, 7, padding=3)]
    for rate in rates:
        down = _conv(channels, 2 * channels, 2 * rate, stride=rate, padding=math.ceil(rate / 2))
        layers.append(_Wrapped("block", [*_residuals(channels), _Snake(channels), down]))
        channels *= 2
    return [*layers, _conv(channels, channels, 7, padding=3, groups=channels)]


def _decoder(latent: int, channels: int, rates: Sequence[int], noise: bool) -> list[nn.Module]:
    layers = [_conv(latent, latent, 7, padding=3, groups=latent), _conv(latent, channels, 1)]
    for rate in rates:
        half = channels // 2
        edge = {"padding": math.ceil(rate / 2), "output_padding": rate % 2}
        up = weight_norm(nn.ConvTranspose1d(channels, half, 2 * rate, stride=rate, **edge))
        noisy = [_Noise(half)] if noise else []
        layers.append(_Wrapped("block", [_Snake(channels), up, *noisy, *_residuals(half)]))
        channels = half
    return [*layers, _Snake(channels), _conv(channels, 1, 7, padding=3), nn.Tanh()]
