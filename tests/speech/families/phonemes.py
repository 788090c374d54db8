"""Text to phonemes by espeak-ng itself, as a user's own function: phonemizer is not needed for it."""

from __future__ import annotations

import ctypes
from functools import cache

import espeakng_loader

UTF8, IPA = 1, 2


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    assert library.espeak_Initialize(1, 0, espeakng_loader.get_data_path().encode(), 0) > 0
    assert library.espeak_SetVoiceByName(b"en-us") == 0
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    return library


def espeak(text: str) -> str:
    """Phonemes of all clauses, without punctuation."""
    rest, clauses = ctypes.c_char_p(text.encode()), []
    while rest.value is not None:
        clauses.append(_library().espeak_TextToPhonemes(ctypes.byref(rest), UTF8, IPA).decode())
    return " ".join(clauses)


def number(text: str) -> int:
    """What a function to phonemes must not do."""
    return len(text)
