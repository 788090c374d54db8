"""Speech codecs by name: tokens for a language model to speak, and the way back to sound.

To add one: a module in this folder with a subclass of `Codec` that has a `name`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from speech.codecs.base import Codec
from speech.codecs.checks import read_json
from speech.codecs.s3 import S3Codec
from speech.errors import UserError
from speech.runtime.codec_source import split_source
from speech.runtime.registry import discover, import_own, named_class

CODECS: dict[str, type[Codec]] = discover("speech.codecs", Codec)  # type: ignore[type-abstract]

__all__ = ["CODECS", "Codec", "load_codec"]


def load_codec(path: str | Path, name: str | None = None) -> Codec:
    """Bind a folder of weights to its codec, chosen by the folder unless named.

    Args:
        path: the folder; or `module:attribute@folder`, where the attribute is a codec class of the user's own, or what
            makes `token2wav` for a codec that needs it (`speech/codecs/s3.py`).
        name: of the codec; a class of the user's own in `path` goes before it.

    Raises:
        UserError: no such folder or config, no codec knows it, no codec has this name, or the user's own cannot be
            imported or is of no use to the codec.
    """
    own_name, where = split_source(str(path))
    folder = Path(where)
    own: Any = None if own_name is None else import_own("codec", own_name)
    named = None if name is None else named_class("codec", name, CODECS, Codec)  # type: ignore[type-abstract]
    if not folder.is_dir():
        raise UserError(f"codec folder {folder} does not exist")
    if inspect.isclass(own) and issubclass(own, Codec):
        return own(folder)
    codec = named(folder) if named is not None else _recognised(folder)(folder)
    if own is not None:
        if not isinstance(codec, S3Codec):
            raise UserError(f"codec {own_name!r}: {folder} is of {codec.name!r}, which needs no token2wav")
        codec.use(own, str(own_name))
    return codec


def _recognised(folder: Path) -> type[Codec]:
    config_path = folder / "config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    for codec in CODECS.values():
        if codec.recognises(config, folder):
            return codec
    if not config_path.is_file():
        raise UserError(f"codec folder {folder} lacks config.json; is it a Hugging Face checkpoint?")
    known = ", ".join(f"{c.name} ({'/'.join(c.model_types)})" if c.model_types else c.name for c in CODECS.values())
    model_type = config.get("model_type")
    raise UserError(f"{config_path}: no codec for model_type {model_type!r}. Known: {known}. See docs/codecs.md.")
