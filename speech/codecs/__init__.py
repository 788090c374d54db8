"""Speech codecs by name: tokens for a language model to speak, and the way back to sound.

To add one: a module in this folder with a subclass of `Codec` that has a `name`.
"""

from __future__ import annotations

from pathlib import Path

from speech.codecs.base import Codec
from speech.codecs.checks import read_json
from speech.errors import UserError
from speech.runtime.registry import discover, named_class

CODECS: dict[str, type[Codec]] = discover("speech.codecs", Codec)  # type: ignore[type-abstract]

__all__ = ["CODECS", "Codec", "load_codec"]


def load_codec(path: str | Path, name: str | None = None) -> Codec:
    """Bind a folder of weights to its codec, chosen by `config.json` unless named.

    Raises:
        UserError: no such folder or config, no codec knows this model type, or no codec has this name.
    """
    folder = Path(path)
    named = None if name is None else named_class("codec", name, CODECS, Codec)  # type: ignore[type-abstract]
    if not folder.is_dir():
        raise UserError(f"codec folder {folder} does not exist")
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"codec folder {folder} lacks config.json; is it a Hugging Face checkpoint?")
    if named is not None:
        return named(folder)
    config = read_json(config_path)
    for codec in CODECS.values():
        if codec.recognises(config):
            return codec(folder)
    known = ", ".join(f"{c.name} ({'/'.join(c.model_types)})" if c.model_types else c.name for c in CODECS.values())
    model_type = config.get("model_type")
    raise UserError(f"{config_path}: no codec for model_type {model_type!r}. Known: {known}. See docs/codecs.md.")
