"""The network of the demo codec: envelope and pitch → one token a frame → pitch and filters of the vocoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from speech.codecs.pitch import MAX_HZ, MIN_HZ
from speech.codecs.vocoder import BANDS

LOG_HZ_CENTRE, LOG_HZ_SCALE = 5.0, 0.5
"""Normalise the natural log of a pitch: 148 Hz is 0, speakers lie within ±2."""
POWER_CENTRE, POWER_SCALE = -8.0, 4.0
"""The same for the log power of an envelope at the codec's level."""


@dataclass(frozen=True)
class DemoCodecConfig:
    """Sizes of the network.

    Attributes:
        size: number of tokens.
        stride: vocoder frames of 10 ms that one token stands for.
        channels: width of encoder and decoder, which run once a token.
        fine_channels: width of the part of the decoder that runs once a frame.
        code_dim: dimension of the codebook's vectors.
    """

    size: int = 1024
    stride: int = 3
    channels: int = 160
    fine_channels: int = 96
    code_dim: int = 16


@dataclass(frozen=True)
class VocoderControls:
    """What the decoder says about each vocoder frame.

    Attributes:
        hz: pitch (batch, frames).
        harmonic, noisy: log amplitudes (batch, frames, BANDS).
    """

    hz: torch.Tensor
    harmonic: torch.Tensor
    noisy: torch.Tensor


class Block(nn.Module):
    """A residual convolution over time: (batch, time, channels) → the same."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        # Over channels only: statistics over time would let every token reach every other.
        self.norm = nn.LayerNorm(channels)
        self.over_time = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.over_time(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mix(nn.functional.gelu(y))


class DemoCodecModel(nn.Module):
    """Encoder, codebook, decoder. Frames are a multiple of `config.stride`."""

    def __init__(self, config: DemoCodecConfig) -> None:
        super().__init__()
        self.config = config
        channels, stride = config.channels, config.stride
        self.listen = nn.Linear(stride * (BANDS + 2), channels)
        self.encoder = nn.Sequential(Block(channels, 3), Block(channels, 3), Block(channels, 3))
        self.to_code = nn.Linear(channels, config.code_dim)
        self.codebook = nn.Parameter(torch.randn(config.size, config.code_dim), requires_grad=False)
        self.from_code = nn.Linear(config.code_dim, channels)
        self.decoder = nn.Sequential(Block(channels, 5), Block(channels, 5), Block(channels, 5))
        self.up = nn.Linear(channels, stride * config.fine_channels)
        self.fine = Block(config.fine_channels, 5)
        self.speak = nn.Linear(config.fine_channels, 2 * BANDS + 1)

    def encode(self, envelope: torch.Tensor, hz: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """Features (batch, frames, BANDS), (batch, frames), (batch, frames) → codes before quantisation.

        Returns:
            (batch, frames / stride, code_dim).
        """
        pitch = (hz.log() - LOG_HZ_CENTRE) / LOG_HZ_SCALE * strength
        x = torch.cat([(envelope - POWER_CENTRE) / POWER_SCALE, pitch[..., None], strength[..., None]], dim=-1)
        x = x.reshape(len(x), -1, self.config.stride * x.shape[-1])
        return self.to_code(self.encoder(self.listen(x)))

    def quantise(self, codes: torch.Tensor) -> torch.Tensor:
        """The nearest entry of the codebook: (…, code_dim) → ids (…)."""
        distance = self.codebook.square().sum(-1) - 2 * codes @ self.codebook.T
        return distance.argmin(-1)

    def decode(self, codes: torch.Tensor) -> VocoderControls:
        """Codebook vectors (batch, tokens, code_dim) → controls of stride · tokens frames."""
        x = self.decoder(self.from_code(codes))
        x = self.up(x).reshape(len(x), -1, self.config.fine_channels)
        out = self.speak(self.fine(x))
        hz = torch.exp(out[..., -1] * LOG_HZ_SCALE + LOG_HZ_CENTRE).clamp(MIN_HZ, MAX_HZ)
        filters = (out[..., :-1] * POWER_SCALE + POWER_CENTRE) / 2  # power → amplitude
        return VocoderControls(hz, filters[..., :BANDS], filters[..., BANDS:])
