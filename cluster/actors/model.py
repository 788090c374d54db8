"""The model of a run, as actors are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech.families import LanguageModelFamily


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A checkpoint folder, the family that reads it (None: by `model_type`), and the family's options."""

    path: str
    family: str | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def load_family(self) -> LanguageModelFamily:
        """The family bound to its checkpoint, in whatever process asks; no weights are loaded.

        Raises:
            UserError: see `speech.families.load_family`.
        """
        from speech.families import load_family  # imports torch, which not every actor needs
        from speech.runtime.hub import model_folder

        return load_family(model_folder(self.path), self.family, self.options)
