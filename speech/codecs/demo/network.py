"""The network of the demo codec: envelope and pitch → codes and pitch levels → pitch and filters of the vocoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from speech.codecs.demo.vocoder import BANDS

LOWEST_HZ, HIGHEST_HZ = 70.0, 350.0  # the first and the last level of pitch
LOG_HZ_CENTRE, LOG_HZ_SCALE = 5.0, 0.5
"""Normalise the natural log of a pitch: 148 Hz is 0, speakers lie within ±2."""
BEND = 0.15
"""How far (natural log, 2.6 semitones) the decoder may bend the pitch away from its level."""


@dataclass(frozen=True)
class DemoCodecConfig:
    """Sizes of the network.

    Attributes:
        codebooks: the first says what a stretch of time is, each further one refines it.
        codes: entries of a codebook.
        pitches: levels of pitch.
        stride: vocoder frames of 10 ms in one piece, which is an entry of each codebook.
        codes_per_pitch: pieces that one level of pitch stands for.
        channels: width of encoder and decoder, which run once a piece.
        fine_channels: width of the part of the decoder that runs once a frame.
        code_dim: dimension of the codebook's vectors.
        components: principal components of the envelope over one code's time that encoder and decoder work with.
    """

    codebooks: int = 2
    codes: int = 1024
    pitches: int = 32
    stride: int = 4
    codes_per_pitch: int = 2
    channels: int = 160
    fine_channels: int = 96
    code_dim: int = 48
    components: int = 64


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
    """Encoder, codebook, decoder. Frames are a multiple of `config.stride · config.codes_per_pitch`."""

    def __init__(self, config: DemoCodecConfig) -> None:
        super().__init__()
        self.config = config
        channels, stride = config.channels, config.stride
        patch = stride * BANDS
        # Principal components converge in hundreds of steps where raw bands take many thousands.
        self.patch_mean = nn.Parameter(torch.zeros(patch), requires_grad=False)
        self.patch_scale = nn.Parameter(torch.ones(config.components), requires_grad=False)
        self.patch_basis = nn.Parameter(torch.zeros(config.components, patch), requires_grad=False)
        self.listen = nn.Linear(config.components + 2 * stride, channels)
        self.encoder = nn.Sequential(Block(channels, 3), Block(channels, 3), Block(channels, 3))
        self.to_code = nn.Linear(channels, config.code_dim)
        self.codebook = nn.Parameter(torch.randn(config.codebooks, config.codes, config.code_dim), requires_grad=False)
        self.from_code = nn.Linear(config.code_dim, channels)
        self.from_pitch = nn.Embedding(config.pitches, channels)
        self.decoder = nn.Sequential(Block(channels, 5), Block(channels, 5), Block(channels, 5))
        self.shape = nn.Linear(channels, config.components)
        self.up = nn.Linear(channels, stride * config.fine_channels)
        self.fine = Block(config.fine_channels, 5)
        self.speak = nn.Linear(config.fine_channels, 2 * BANDS + 1)

    def fit_components(self, envelopes: torch.Tensor) -> None:
        """Principal components of envelopes (batch, frames, BANDS)."""
        patches = envelopes.reshape(-1, self.config.stride * BANDS)
        self.patch_mean.copy_(patches.mean(0))
        values, vectors = torch.linalg.eigh((patches - self.patch_mean).T.cov())
        kept = self.config.components
        self.patch_scale.copy_(values[-kept:].flip(0).sqrt())
        self.patch_basis.copy_(vectors[:, -kept:].flip(1).T)

    def encode(self, envelope: torch.Tensor, hz: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """Features (batch, frames, BANDS), (batch, frames), (batch, frames) → codes before quantisation.

        Returns:
            (batch, frames / stride, code_dim).
        """
        pitch = (hz.log() - LOG_HZ_CENTRE) / LOG_HZ_SCALE * strength
        patches = envelope.reshape(len(envelope), -1, self.config.stride * BANDS) - self.patch_mean
        # The weak components are not blown up to the size of the strong ones: most of them is noise.
        x = patches @ self.patch_basis.T / self.patch_scale.sqrt()
        voice = torch.stack([pitch, strength], dim=-1).reshape(*x.shape[:2], -1)
        x = torch.cat([x, voice], dim=-1)
        return self.to_code(self.encoder(self.listen(x)))

    def quantise(self, codes: torch.Tensor) -> torch.Tensor:
        """The nearest entry of each codebook to what the ones before leave: (…, code_dim) → ids (…, codebooks)."""
        ids = []
        for table in self.codebook:
            nearest = (table.square().sum(-1) - 2 * codes @ table.T).argmin(-1)
            codes = codes - table[nearest]
            ids.append(nearest)
        return torch.stack(ids, dim=-1)

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (…, codebooks) → the sum of their entries (…, code_dim); an id of −1 adds nothing."""
        entries = [
            table[column.clamp(min=0)] * (column >= 0)[..., None]
            for table, column in zip(self.codebook, ids.unbind(-1), strict=True)
        ]
        return torch.stack(entries).sum(0)

    def pitch_levels(self, hz: torch.Tensor) -> torch.Tensor:
        """Pitch curve (batch, frames) → nearest levels (batch, frames / stride / codes_per_pitch)."""
        stretch = self.config.stride * self.config.codes_per_pitch
        mean = hz.log().reshape(len(hz), -1, stretch).mean(-1)
        low, high = math.log(LOWEST_HZ), math.log(HIGHEST_HZ)
        return (
            ((mean - low) / (high - low) * (self.config.pitches - 1)).round().long().clamp(0, self.config.pitches - 1)
        )

    def level_log_hz(self, levels: torch.Tensor) -> torch.Tensor:
        """Natural log of the pitch in Hz of levels."""
        low, high = math.log(LOWEST_HZ), math.log(HIGHEST_HZ)
        return low + levels * ((high - low) / (self.config.pitches - 1))

    def decode(self, codes: torch.Tensor, levels: torch.Tensor) -> VocoderControls:
        """Codebook vectors (batch, codes, code_dim), levels (batch, codes) → controls of stride · codes frames."""
        x = self.decoder(self.from_code(codes) + self.from_pitch(levels))
        fine = self.up(x).reshape(len(x), -1, self.config.fine_channels)
        out = self.speak(self.fine(fine))
        held = self.level_log_hz(levels).repeat_interleave(self.config.stride, dim=1)
        hz = torch.exp(held + BEND * torch.tanh(out[..., -1]))
        patches = (self.shape(x) * self.patch_scale.sqrt()) @ self.patch_basis + self.patch_mean
        power = patches.reshape(*hz.shape, BANDS) + out[..., :BANDS]
        voicing = out[..., BANDS:-1]
        parts = [(power + nn.functional.logsigmoid(sign * voicing)) / 2 for sign in (1, -1)]
        return VocoderControls(hz, *parts)
