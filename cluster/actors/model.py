"""The model of a run, as actors are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A checkpoint folder, the family that reads it (None: by `model_type`), and the family's options."""

    path: str
    family: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
