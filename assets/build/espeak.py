"""espeak-ng in this process, through ctypes on the library of the `espeakng-loader` wheel."""

from __future__ import annotations

import ctypes
from typing import Any

import espeakng_loader
import numpy as np

from assets.build.acoustics import Waveform

AUDIO_OUTPUT_SYNCHRONOUS = 2  # samples come through the callback, before espeak_Synth returns
POS_CHARACTER = 1
CHARS_UTF8 = 1
PARAMETER_RATE, PARAMETER_PITCH, PARAMETER_RANGE = 1, 3, 4
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """One engine; the library holds global state, so a process has use for one only.

    Some of that state (phases, flutter) lives on from one sentence to the next: the same calls in the same order give
    the same samples, but a call repeated later may not.
    """

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate: int = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng does not start with the data in {data.decode()}")
        self._chunks: list[Waveform] = []
        self._callback = CALLBACK(self._receive)  # kept, or it would be collected while the library holds it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / np.float32(32768))
        return 0  # go on

    def speak(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int = 50, seed: int = 0) -> Waveform:
        """Mono float samples at `sample_rate`.

        `voice` is `<language file>+<variant>`, `rate` is in words a minute (80 to 450), `pitch` and
        `pitch_range` are from 0 to 99 with 50 as the voice's own; `seed` fixes the flutter.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_ng_SetRandSeed(seed)
        for parameter, value in ((PARAMETER_RATE, rate), (PARAMETER_PITCH, pitch), (PARAMETER_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise RuntimeError(f"espeak-ng said nothing for {text!r}")
        return np.concatenate(self._chunks)
