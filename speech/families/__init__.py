"""Registry of model families. To add one: write a class in this folder and add it to `FAMILIES`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from speech.errors import UserError
from speech.families.base import AudioEncoder, ModelFamily
from speech.families.demo import DemoFamily
from speech.families.qwen3_asr import Qwen3ASRFamily

FAMILIES: dict[str, type[ModelFamily]] = {family.name: family for family in (DemoFamily, Qwen3ASRFamily)}

__all__ = ["FAMILIES", "AudioEncoder", "ModelFamily", "load_family"]


def load_family(path: str | Path, name: str | None = None) -> ModelFamily:
    """Bind a checkpoint folder to its family, chosen by `model_type` in `config.json` unless named.

    Raises:
        UserError: no such folder or config, no family knows this model type, or no family has this name.
    """
    folder = Path(path)
    config_path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    if not config_path.is_file():
        raise UserError(f"model folder {folder} lacks config.json; is it a Hugging Face checkpoint?")
    if name is not None:
        if name not in FAMILIES:
            near = difflib.get_close_matches(name, FAMILIES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UserError(f"unknown model family {name!r}{hint} Known: {', '.join(sorted(FAMILIES))}")
        return FAMILIES[name](folder)
    try:
        model_type = json.loads(config_path.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config_path}: not valid JSON ({error})") from error
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family(folder)
    known = ", ".join(f"{f.name} ({'/'.join(f.model_types)})" for f in FAMILIES.values())
    raise UserError(
        f"{config_path}: no model family for model_type {model_type!r}. Known: {known}. "
        "docs/model-families.md shows how to add one."
    )
