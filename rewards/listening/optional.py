"""Packages that only some rewards need."""

from __future__ import annotations

import importlib
from types import ModuleType

from speech.errors import UserError


def import_optional(module: str, requirement: str, wanted_by: str) -> ModuleType:
    """Import a package that the plain installation does not bring.

    Args:
        module: what to import.
        requirement: what to install when it is missing, with its version.
        wanted_by: the configuration that needs it, for the message.

    Raises:
        UserError: it, or something that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{wanted_by} needs the package {requirement} ({error}); install it with the extra: "
            "pip install 'speechrl[tts]'"
        ) from error
