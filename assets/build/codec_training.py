"""Trains the network of the demo codec in two stages.

1. Features only (no waveform is made): the codebook, the spectrum, the pitch, a first guess of what is noise. Cheap.
2. Encoder and codebook frozen: the decoder learns, through the vocoder, to sound like the original; the distance is
   that of log spectra at three resolutions, which is blind to phase.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speech.codecs.demo import vocoder
from speech.codecs.demo.codec import Features, analyse, to_level
from speech.codecs.demo.network import LOG_HZ_SCALE, DemoCodecModel, VocoderControls

SEGMENT = 96  # frames, about a second
EDGE_SECONDS = 0.15  # of silence around each utterance, so that the codec knows silence
COMPONENT_SEGMENTS = 1500  # that the principal components are computed from
CODEBOOK_STEPS = 40  # whose codes the codebooks start from
WARM_UP = 200  # steps before the codebook takes part
COMMITMENT = 0.5
CODEBOOK_DECAY = 0.98
RESOLUTIONS = (256, 512, 1024)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast each stage learns."""

    feature_steps: int = 2400
    feature_batch: int = 12
    wave_steps: int = 500
    wave_batch: int = 8
    learning_rate: float = 4e-3
    seed: int = 1


class Segments:
    """Random pieces of utterances, always SEGMENT frames long, starting at any frame."""

    def __init__(self, waves: Sequence[np.ndarray], seed: int) -> None:
        edge = round(EDGE_SECONDS * vocoder.SAMPLE_RATE)
        self._items: list[tuple[torch.Tensor, Features]] = []
        for wave in waves:
            padded = np.pad(to_level(wave), (edge, edge))
            padded = np.pad(padded, (0, max(SEGMENT * vocoder.HOP - len(padded), -len(padded) % vocoder.HOP)))
            self._items.append((torch.from_numpy(padded), analyse(padded)))
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int) -> tuple[torch.Tensor, Features]:
        """Waveforms (count, SEGMENT · HOP) and their features."""
        waves, features = [], []
        for index in self._rng.integers(len(self._items), size=count):
            wave, whole = self._items[index]
            start = int(self._rng.integers(len(whole.hz) - SEGMENT + 1))
            waves.append(wave[start * vocoder.HOP : (start + SEGMENT) * vocoder.HOP])
            features.append(Features(*(part[start : start + SEGMENT] for part in whole)))
        return torch.stack(waves), Features(*(torch.stack(parts) for parts in zip(*features, strict=True)))


class Codebook:
    """Learns one table by moving averages of what falls to its entries (van den Oord et al. 2017, appendix A.1)."""

    def __init__(self, table: torch.Tensor, codes: torch.Tensor, generator: torch.Generator) -> None:
        self._table, self._generator = table, generator
        table.copy_(codes[torch.randperm(len(codes), generator=generator)[: len(table)]])
        for _ in range(10):  # k-means
            count, total = self._gather(codes, self.nearest(codes))
            table.copy_(torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], table))
        self._count = torch.ones(len(table))
        self._sum = table.clone()

    def nearest(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (n, code_dim) → ids (n,)."""
        return (self._table.square().sum(-1) - 2 * codes @ self._table.T).argmin(-1)

    def residual(self, codes: torch.Tensor) -> torch.Tensor:
        """What the table leaves of codes (n, code_dim)."""
        return codes - self._table[self.nearest(codes)]

    def _gather(self, codes: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = torch.bincount(ids, minlength=len(self._table)).float()
        return count, torch.zeros_like(self._table).index_add_(0, ids, codes)

    def update(self, codes: torch.Tensor, ids: torch.Tensor) -> None:
        """One step; an entry that nothing falls to any more moves to a random code."""
        count, total = self._gather(codes, ids)
        self._count.lerp_(count, 1 - CODEBOOK_DECAY)
        self._sum.lerp_(total, 1 - CODEBOOK_DECAY)
        idle = (self._count < 0.03).nonzero()[:, 0]
        chosen = codes[torch.randint(len(codes), (len(idle),), generator=self._generator)]
        self._sum[idle], self._count[idle] = chosen * 0.3, 0.3
        self._table.copy_(self._sum / self._count[:, None])


def first_codebooks(model: DemoCodecModel, codes: torch.Tensor, generator: torch.Generator) -> list[Codebook]:
    """k-means on codes (n, code_dim), then on what it leaves, and so on."""
    codebooks = []
    for table in model.codebook.data:
        codebooks.append(Codebook(table, codes, generator))
        codes = codebooks[-1].residual(codes)
    return codebooks


def feature_loss(controls: VocoderControls, features: Features) -> dict[str, torch.Tensor]:
    """Distances between what the decoder says and the features, by name."""
    strength = features.strength
    power = torch.logaddexp(2 * controls.harmonic, 2 * controls.noisy)
    pitch = (controls.hz.log() - features.hz.log()).abs() / LOG_HZ_SCALE
    # The periodic share of a frame's power: true of the lower bands, a guess above that stage 2 corrects.
    share = torch.sigmoid(2 * (controls.harmonic - controls.noisy))[..., : vocoder.BANDS // 2]
    return {
        "spectrum": (power - features.envelope).abs().mean(),
        "pitch": (pitch * strength).sum() / strength.sum().clamp(min=1),
        "periodic": (share - strength[..., None]).square().mean(),
    }


def wave_loss(produced: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Mean distance of log spectra (batch, samples) at several resolutions."""
    total = torch.zeros(())
    for size in RESOLUTIONS:
        window = torch.hann_window(size)
        spectra = [
            torch.stft(wave, size, size // 4, window=window, return_complex=True).abs().square() / window.square().sum()
            for wave in (produced, original)
        ]
        a, b = (torch.log(spectrum + vocoder.FLOOR) for spectrum in spectra)
        total = total + (a - b).abs().mean()
    return total / len(RESOLUTIONS)


Point = dict[str, float | str]
"""One line of the training curve."""


def train(model: DemoCodecModel, waves: Sequence[np.ndarray], schedule: Schedule) -> list[Point]:
    """Train in place on clean utterances (samples,) at the codec's rate; returns the training curve."""
    segments = Segments(waves, schedule.seed)
    model.fit_components(segments.draw(COMPONENT_SEGMENTS)[1].envelope)
    curve = _train_features(model, segments, schedule) + _train_waves(model, segments, schedule)
    model.eval()
    return curve


def _train_features(model: DemoCodecModel, segments: Segments, schedule: Schedule) -> list[Point]:
    generator = torch.Generator().manual_seed(schedule.seed)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=schedule.learning_rate)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, schedule.learning_rate, total_steps=schedule.feature_steps, pct_start=0.1
    )
    recent: list[torch.Tensor] = []
    curve: list[Point] = []
    codebooks: list[Codebook] = []
    started = time.perf_counter()
    for step in range(schedule.feature_steps):
        _, features = segments.draw(schedule.feature_batch)
        codes = model.encode(*features)
        flat = codes.detach().reshape(-1, model.config.code_dim)
        if not codebooks:
            recent.append(flat)
            quantised, commitment = codes, codes.square().mean() * 0.01
            if step + 1 == WARM_UP:
                codebooks = first_codebooks(model, torch.cat(recent[-CODEBOOK_STEPS:]), generator)
        else:
            ids = model.quantise(flat)
            entries = model.look_up(ids).view_as(codes)
            commitment = (codes - entries).square().mean()
            quantised = codes + (entries - codes).detach()
            left = flat
            for codebook, table, column in zip(codebooks, model.codebook.data, ids.unbind(-1), strict=True):
                rest = left - table[column]
                codebook.update(left, column)
                left = rest
        levels = model.pitch_levels(features.hz).repeat_interleave(model.config.codes_per_pitch, dim=1)
        losses = feature_loss(model.decode(quantised, levels), features)
        loss = losses["spectrum"] + losses["pitch"] + 0.4 * losses["periodic"] + COMMITMENT * commitment
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        rates.step()
        if (step + 1) % 300 == 0:
            curve.append(_point("features", step, started, losses))
    return curve


def _train_waves(model: DemoCodecModel, segments: Segments, schedule: Schedule) -> list[Point]:
    decoder = [model.from_code, model.from_pitch, model.decoder, model.up, model.fine, model.speak]
    weights = [parameter for part in decoder for parameter in part.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=schedule.learning_rate / 4)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, schedule.learning_rate / 4, total_steps=schedule.wave_steps, pct_start=0.1
    )
    started = time.perf_counter()
    curve: list[Point] = []
    for step in range(schedule.wave_steps):
        waves, features = segments.draw(schedule.wave_batch)
        with torch.no_grad():
            codes = model.look_up(model.quantise(model.encode(*features)))
        levels = model.pitch_levels(features.hz).repeat_interleave(model.config.codes_per_pitch, dim=1)
        controls = model.decode(codes, levels)
        produced = vocoder.synthesise(controls.hz.detach(), controls.harmonic, controls.noisy)
        losses = feature_loss(controls, features)
        losses["wave"] = wave_loss(produced, waves)
        loss = losses["wave"] + losses["spectrum"] + losses["pitch"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        rates.step()
        if (step + 1) % 50 == 0:
            curve.append(_point("waves", step, started, losses))
    return curve


def _point(stage: str, step: int, started: float, losses: dict[str, torch.Tensor]) -> Point:
    """A line of the training curve, printed as well."""
    figures = {name: round(value.item(), 4) for name, value in losses.items()}
    shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
    print(f"{stage} {step + 1:5d}  {shown}  {time.perf_counter() - started:.0f} s", flush=True)
    return {"stage": stage, "step": step + 1, **figures}
