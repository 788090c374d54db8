"""Model families by name. To add one: a module in this folder with a subclass that has a `name`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech.errors import UserError, did_you_mean
from speech.families.base import AudioEncoder, LanguageModelFamily, ModelFamily, SpeechFamily
from speech.runtime.checkpoint_files import refuse_chatterbox
from speech.runtime.registry import discover, named_class

FAMILIES: dict[str, type[LanguageModelFamily]] = discover("speech.families", LanguageModelFamily)  # type: ignore[type-abstract]

__all__ = ["FAMILIES", "AudioEncoder", "LanguageModelFamily", "ModelFamily", "SpeechFamily", "load_family"]


def load_family(
    path: str | Path, name: str | None = None, options: Mapping[str, Any] | None = None
) -> LanguageModelFamily:
    """Bind a checkpoint folder to its family, chosen by its `config.json` unless named.

    Args:
        path: Hugging Face checkpoint folder.
        name: of the family, a user's own as `module:Class`, or None.
        options: keyword arguments of the family's class, for instance `{"force_language": "en"}`.

    Raises:
        UserError: no such folder or config, no family knows this model type, no family has this name, or the family
            has no such option.
    """
    folder = Path(path)
    config_path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    refuse_chatterbox(folder)
    if not config_path.is_file():
        raise UserError(f"model folder {folder} lacks config.json; is it a Hugging Face checkpoint?")
    if name is None:
        family = _recognised(config_path)
    else:
        family = named_class("model family", name, FAMILIES, LanguageModelFamily)  # type: ignore[type-abstract]
    known = family.options()
    for option in options or {}:
        if option not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise UserError(
                f"model family {family.name!r} has no option {option!r}{did_you_mean(option, known)}; the family {has}"
            )
    return family(folder, **(options or {}))


def _recognised(config_path: Path) -> type[LanguageModelFamily]:
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config_path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{config_path}: not a JSON object")
    possible = [family for family in FAMILIES.values() if family.recognises(config)]
    if len(possible) == 1:
        return possible[0]
    foreign = {family: family.foreign_to(config_path.parent) for family in possible}
    own = [family for family, reason in foreign.items() if reason is None]
    if len(own) == 1:
        return own[0]
    if possible:
        reasons = "; ".join(f"{family.name}: {reason or 'possible'}" for family, reason in foreign.items())
        raise UserError(f"{config_path.parent}: name the family (model.family): {reasons}")
    known = ", ".join(f"{f.name} ({'/'.join(f.model_types)})" for f in FAMILIES.values())
    raise UserError(
        f"{config_path}: no model family for model_type {config.get('model_type')!r}. Known: {known}. "
        "docs/model-families.md shows how to add one."
    )
