"""What a speech codec must do: waveform → tokens → waveform."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class Codec(ABC):
    """One registry entry, bound to one folder of weights.

    Attributes:
        name: registry key (`codec.name` in YAML).
        model_types: values of `model_type` in `config.json` that belong to this codec.
        sample_rate: Hz of the waveforms that go in and come out.
        token_rate: tokens per second of speech (all codebooks together, in the order in which they interleave).
        size: number of token ids; they are 0 … size − 1.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    sample_rate: int
    token_rate: float
    size: int

    def __init__(self, path: Path) -> None:
        """Bind to a folder of weights.

        Raises:
            UserError: a file is missing or is of another codec.
        """
        self.path = path

    @classmethod
    def recognises(cls, config: Mapping[str, Any], folder: Path) -> bool:
        """Whether a folder with this `config.json` (empty where there is none) is of this codec; asked when no codec is
        named."""
        return config.get("model_type") in cls.model_types

    @abstractmethod
    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        """Float32 mono waveforms (samples,) at `sample_rate` → token ids of each.

        The result for a waveform must not depend on its neighbours in the batch.

        Raises:
            ValueError: a waveform is empty or holds other than finite numbers.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Token ids of each utterance → float32 mono waveforms in [−1, 1] at `sample_rate`.

        A policy may sample what no encoder would write. Any sequence of valid ids decodes, except where a codec says
        that its ids have places in a frame (`snac`). No tokens at all give a waveform of no samples.

        Args:
            tokens: ids of the speech to decode.
            voices: ids of the prompt voice of each; a codec whose tokens carry the voice themselves ignores them.

        Raises:
            ValueError: an id is outside 0 … size − 1, or out of its place. The sample then has no reward.
        """

    def check_decoder(self) -> None:  # noqa: B027 - most have nothing to look for
        """Look for what `decode` needs.

        Raises:
            UserError: it is not there. A codec that needs nothing but its folder never raises.
        """

    def features(self) -> np.ndarray | None:
        """What each token sounds like: (size, F) float32, rows alike where tokens are; NaN rows for tokens of which
        that cannot be said. None from a codec that has no such table."""
        return None
