"""What `model.codec` may say: a folder, or `module:attribute@folder`. Loads no torch: checks before a run ask it."""

from __future__ import annotations

import re
from pathlib import Path

S3_FILES = "speech_tokenizer_v*.onnx"
"""Of a folder of CosyVoice, which has no `config.json`."""

_OWN = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)@(.+)")


def split_source(codec: str) -> tuple[str | None, str]:
    """`module:attribute@folder` → (`module:attribute`, folder); a folder alone has no own."""
    own = _OWN.fullmatch(codec)
    return (own[1], own[2]) if own else (None, codec)


def resolved_source(codec: str) -> str:
    """The same with an absolute folder: actors have other working folders."""
    own, folder = split_source(codec)
    absolute = str(Path(folder).resolve())
    return absolute if own is None else f"{own}@{absolute}"
