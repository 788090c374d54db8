"""A source-filter vocoder: a pulse train and noise, each shaped in time and frequency, are the waveform.

Both sources have unit power and a flat spectrum, so that a filter is simply the spectral envelope of the sound:
`envelope` measures what `synthesise` is given. Differentiable in the two filters (after DDSP, Engel et al. 2020, with a
time-varying filter in the short-time spectrum).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
HOP = 160
FFT = 512
BANDS = 64
FLOOR = 1e-7  # of power: −70 dB of full scale
MAX_LOG_AMPLITUDE = 3.0
"""Filters never amplify by more: no sequence of tokens may put out more than a loud sound."""


@cache
@torch.inference_mode(False)  # what is kept here must serve training too, whoever asks first
def _window() -> torch.Tensor:
    return torch.hann_window(FFT)


@cache
@torch.inference_mode(False)
def _bands() -> torch.Tensor:
    """(bins, BANDS), each column summing to one: the mean power of a band."""
    filters = torch.from_numpy(
        mel_filter_bank(FFT // 2 + 1, BANDS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk")
    ).float()
    # The lowest triangles are narrower than a bin and would be empty.
    bins = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    empty = (filters.sum(0) < 1e-3).nonzero()[:, 0]
    filters[(bins[:, None] - _centres()[empty][None]).abs().argmin(0), empty] = 1.0
    return filters / filters.sum(0)


@cache
@torch.inference_mode(False)
def _centres() -> torch.Tensor:
    mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), BANDS + 2)[1:-1]
    return torch.from_numpy(700 * (10 ** (mel / 2595) - 1)).float()


@cache
@torch.inference_mode(False)
def _to_bins() -> torch.Tensor:
    """(BANDS, bins): linear interpolation between the centres of the bands."""
    bins = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    centres = _centres()
    high = torch.searchsorted(centres, bins).clamp(1, BANDS - 1)
    share = ((bins - centres[high - 1]) / (centres[high] - centres[high - 1])).clamp(0, 1)
    matrix = torch.zeros(BANDS, len(bins))
    matrix[high - 1, torch.arange(len(bins))] = 1 - share
    matrix[high, torch.arange(len(bins))] = share
    return matrix


def envelope(waves: torch.Tensor, hz: torch.Tensor) -> torch.Tensor:
    """Waveforms (batch, frames · HOP) and their pitch (batch, frames) → log power density (batch, frames, BANDS).

    White noise of unit variance is 0 everywhere. Frames are centred at 0, HOP, 2·HOP, … samples. The spectrum is
    averaged over two thirds of the pitch, as in WORLD (Morise, "CheapTrick", 2015): harmonics belong to the source.
    """
    spectrum = torch.stft(waves, FFT, HOP, window=_window(), center=True, pad_mode="constant", return_complex=True)
    power = spectrum[..., :-1].abs().square().transpose(1, 2) / _window().square().sum()
    bins = FFT // 2 + 1
    summed = torch.nn.functional.pad(power.cumsum(-1), (1, 0))
    half = hz[..., None] / SAMPLE_RATE * FFT / 3
    middle = torch.arange(bins) + 0.5
    low, high = (middle - half).clamp(0, bins), (middle + half).clamp(0, bins)
    smooth = (_at(summed, high) - _at(summed, low)) / (high - low)
    return torch.log(smooth.clamp(min=0) @ _bands() + FLOOR)


def _at(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Linear interpolation along the last axis at fractional indices."""
    left = place.floor().long().clamp(max=values.shape[-1] - 2)
    share = place - left
    return values.gather(-1, left) * (1 - share) + values.gather(-1, left + 1) * share


def pulses(hz: torch.Tensor) -> torch.Tensor:
    """Pitch curve (batch, frames) → pulse train (batch, frames · HOP) of unit power.

    All harmonics below half the sample rate at equal amplitude, as a closed sum of cosines (the Dirichlet kernel).
    """
    frames = hz.shape[1]
    curve = torch.nn.functional.interpolate(hz[:, None], size=frames * HOP, mode="linear", align_corners=False)[:, 0]
    turns = torch.cumsum(curve.double() / SAMPLE_RATE, dim=1)
    phase = (2 * torch.pi * (turns - turns.floor())).float()
    harmonics = torch.floor(0.475 * SAMPLE_RATE / curve)  # the last of them fades in and out below 7.6 kHz
    half = torch.sin(phase / 2)
    near = half.abs() < 1e-3
    kernel = torch.sin((harmonics + 0.5) * phase) / (2 * torch.where(near, torch.ones_like(half), half)) - 0.5
    return torch.where(near, harmonics, kernel) / torch.sqrt(harmonics / 2)


@cache
@torch.inference_mode(False)
def _noise(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(0))


def noise(samples: int) -> torch.Tensor:
    """The same white noise (samples,) of unit variance every time, so that decoding is deterministic."""
    longest = 1 << max(16, (samples - 1).bit_length())
    return _noise(longest)[:samples]


def synthesise(hz: torch.Tensor, harmonic: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """The sound of two sources behind their filters.

    Args:
        hz: pitch (batch, frames).
        harmonic, noisy: log amplitude (batch, frames, BANDS) of pulses and of noise.

    Returns:
        waveforms (batch, frames · HOP), not limited to [−1, 1].
    """
    batch, frames = hz.shape
    sources = torch.cat([pulses(hz), noise(frames * HOP).expand(batch, -1)])
    spectra = torch.stft(sources, FFT, HOP, window=_window(), center=True, pad_mode="constant", return_complex=True)
    filters = torch.cat([harmonic, noisy]).clamp(max=MAX_LOG_AMPLITUDE) @ _to_bins()
    filters = torch.cat([filters, filters[:, -1:]], dim=1).exp().transpose(1, 2)  # the last centre is the very end
    shaped = (spectra * filters).view(2, batch, *spectra.shape[1:]).sum(0)
    return torch.istft(shaped, FFT, HOP, window=_window(), center=True, length=frames * HOP)
