"""What every codec asks of its input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: no such file, or it does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not an object")
    return value


def check_waves(waves: Sequence[np.ndarray]) -> None:
    """Raises:
    ValueError: a waveform is not one channel, is empty, or holds other than finite numbers.
    """
    for index, wave in enumerate(waves):
        if np.ndim(wave) != 1:
            raise ValueError(f"waveform {index} has shape {np.shape(wave)}; one channel (samples,) is wanted")
        if not len(wave):
            raise ValueError(f"waveform {index} holds no samples")
        if not np.isfinite(wave).all():
            raise ValueError(f"waveform {index} holds samples that are not finite (NaN or infinity)")


def check_tokens(tokens: Sequence[Sequence[int]], size: int) -> None:
    """Raises:
    ValueError: an id is outside 0 … size − 1.
    """
    for index, ids in enumerate(tokens):
        for place, token in enumerate(ids):
            if not 0 <= token < size:
                raise ValueError(
                    f"tokens of utterance {index}: id {token} at position {place} is outside 0 … {size - 1}"
                )
