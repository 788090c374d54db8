"""Encoders that hear windows of 30 seconds, as Whisper does (2212.04356, §2.2): log-mel, padded with silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from speech.families.base import AudioEncoder
from speech.families.hearing.native import too_long

RATE, HOP, FRAMES = 16_000, 160, 3000
SILENCE = 3
"""Rows behind the sound. The first two still hear its end, with half of their window of 400 samples; the third hears
nothing, and is therefore what every further row of the padding is."""


def sound_frames(samples: int) -> int:
    """Frames that begin inside a recording: what the attention mask of `WhisperFeatureExtractor` counts."""
    return max(1, -(-samples // HOP))


class WindowEncoder(AudioEncoder):
    """Features are the frames of the sound and three of silence, however long the window is that the model hears.

    Args:
        tower: the encoder; takes (windows, mel bins, length).
        extractor: the checkpoint's `WhisperFeatureExtractor`.
        joint: the loudest frame of the recording is the reference of all its windows, not each window's own.
        windows: how many it can hear; None for any number.
        length: frames of a window, of an encoder with fewer positions than Whisper's.
    """

    def __init__(
        self,
        tower: torch.nn.Module,
        extractor: Any,
        joint: bool = False,
        windows: int | None = 1,
        length: int = FRAMES,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.extractor = extractor
        self.joint = joint
        self.windows = windows
        self.length = length

    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) at 16 kHz → log-mel (frames + 3, mel bins), 100 frames a second.

        Raises:
            InputError: the recording is longer than the model can hear.
        """
        samples = len(wave)
        window = self.length * HOP
        if self.windows is not None and samples > self.windows * window:
            raise too_long(samples, self.windows * window / RATE)
        step = max(samples, 1) if self.joint else window
        rows = torch.cat([self._log_mel(wave[start : start + step]) for start in range(0, max(samples, 1), step)])
        wanted = sound_frames(samples) + SILENCE
        # Behind a window that is full there is no silence to hear, and `as_windows` drops these rows.
        return torch.cat([rows[:wanted], rows[-1:].expand(max(0, wanted - len(rows)), -1)])

    def _log_mel(self, wave: np.ndarray) -> torch.Tensor:
        frames = sound_frames(len(wave))
        # Two more than the silence that is kept: the transform mirrors what is before the end of its input.
        samples = min((frames + SILENCE + 2) * HOP, -(-frames // self.length) * self.length * HOP)
        padded = np.pad(wave.astype(np.float32), (0, samples - len(wave)))
        mel = self.extractor(padded, sampling_rate=RATE, padding="do_not_pad", truncation=False)["input_features"][0]
        return torch.as_tensor(mel).T.contiguous()

    def as_windows(self, features: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Features (frames + 3, mel bins) → windows (w, mel bins, length) padded with silence, and the frames."""
        frames = len(features) - SILENCE
        length = -(-frames // self.length) * self.length
        silence = features[-1:].expand(max(0, length - len(features)), -1)
        return torch.cat([features[:length], silence]).view(-1, self.length, features.shape[1]).mT, frames
