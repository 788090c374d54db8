"""Reader for the `meta.lst` of seed-tts-eval (arXiv 2406.02430): prompt voices and texts to be spoken in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.jsonl import read_lines

FIELDS = ("id", "prompt_text", "prompt_audio", "text", "audio")
_BAR = re.compile(r"(?<!<)\|(?!>)")  # not those of <|endofprompt|>
_NAMES = {"id": "utt", "prompt_audio": "prompt_wav", "audio": "wav"}


def read_seed_tts(path: Path) -> Iterator[Entry | Problem]:
    """`utt|prompt_text|prompt_wav|text`, optionally `|wav`, a recording of the text; paths are relative to the list."""
    for item in read_lines(path):
        if isinstance(item, Problem):
            yield item
            continue
        line, text = item
        values = [field.strip() for field in _BAR.split(text)]
        if not is_seed_tts(text):
            message = f"has {len(values)} fields; expected utt|prompt_text|prompt_wav|text, or one more with a wav"
            yield Problem(file=str(path), line=line, key=None, message=message)
            continue
        yield Entry(str(path), line, path.parent, dict(zip(FIELDS, values, strict=False)), _NAMES)


def is_seed_tts(line: str) -> bool:
    """Whether a line has the number of fields of this format."""
    return len(_BAR.split(line)) in (len(FIELDS) - 1, len(FIELDS))
