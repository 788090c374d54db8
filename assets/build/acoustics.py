"""Rooms, noises and levels: what happens to clean speech before it becomes an utterance of the corpus."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve

Waveform = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000  # Hz, of everything that the corpus stores
SPEED_OF_SOUND = 343.0  # m/s
PEAK = 0.97  # of full scale; louder waveforms are turned down rather than clipped


def rms(waveform: Waveform) -> float:
    """Root mean square, 0 for silence."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) if len(waveform) else 0.0


def trim(waveform: Waveform, threshold_db: float = -45.0) -> Waveform:
    """Cut the silence at both ends: whatever stays `threshold_db` below the peak."""
    loud = np.flatnonzero(np.abs(waveform) > np.abs(waveform).max() * 10 ** (threshold_db / 20))
    return waveform[loud[0] : loud[-1] + 1]


def pad(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """0.1 to 0.2 s of silence at each end."""
    before, after = (int(seconds * SAMPLE_RATE) for seconds in rng.uniform(0.1, 0.2, 2))
    return np.pad(waveform, (before, after))


def white(samples: int, rng: np.random.Generator) -> Waveform:
    """Noise with the same power at every frequency."""
    return rng.standard_normal(samples, dtype=np.float32)


def pink(samples: int, rng: np.random.Generator) -> Waveform:
    """Noise whose power falls with frequency by 3 dB an octave, flat below 50 Hz."""
    spectrum = np.fft.rfft(white(samples, rng))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency, 50.0)), samples).astype(np.float32)


def babble(samples: int, bank: list[Waveform], rng: np.random.Generator, talkers: int = 5) -> Waveform:
    """Several people at once: utterances of `bank`, each repeated from a random point, at equal level."""
    result = np.zeros(samples, np.float32)
    for index in rng.choice(len(bank), size=min(talkers, len(bank)), replace=False):
        talker = np.roll(bank[index], int(rng.integers(len(bank[index]))))
        result += np.resize(talker, samples) / max(rms(talker), 1e-6)
    return result


def room_response(rng: np.random.Generator) -> Waveform:
    """A synthetic impulse response: the direct sound, some early echoes, then decaying noise.

    The reverberation time (-60 dB) is 0.15 to 0.45 s and the direct sound 2 to 8 dB above all the rest, as at
    arm's length from a device in a furnished room.
    """
    decay_time = rng.uniform(0.15, 0.45)
    time = np.arange(int(decay_time * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    first_echo = rng.uniform(1.0, 3.0) / SPEED_OF_SOUND  # s, for a detour of 1 to 3 m
    tail = rng.standard_normal(len(time), dtype=np.float32) * 10 ** (-3 * time / decay_time)
    tail[time < first_echo] = 0
    early = (time >= first_echo) & (time < 0.03)
    tail[early] *= rng.random(int(early.sum())) < 0.1  # single reflections, not yet a diffuse field
    tail /= np.sqrt(np.sum(tail**2)) * 10 ** (rng.uniform(2, 8) / 20)
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberate(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """The waveform in a random room, cut to its own length so that timing is kept."""
    return fftconvolve(waveform, room_response(rng))[: len(waveform)].astype(np.float32)


def mix(speech: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Speech plus noise at `snr_db`, measured over the part of the utterance where somebody speaks."""
    active = np.abs(speech) > np.abs(speech).max() * 0.02
    gain = rms(speech[active]) / max(rms(noise), 1e-9) * 10 ** (-snr_db / 20)
    return (speech + noise * gain).astype(np.float32)


def set_level(waveform: Waveform, dbfs: float) -> Waveform:
    """Scale to an RMS of `dbfs` (0 is a full-scale square wave), but never beyond PEAK."""
    scaled = waveform * (10 ** (dbfs / 20) / max(rms(waveform), 1e-9))
    peak = float(np.abs(scaled).max())
    return (scaled * min(1.0, PEAK / peak)).astype(np.float32)
