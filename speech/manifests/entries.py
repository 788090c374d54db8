"""One line of a manifest of any format, and the checks that all formats share."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from speech.errors import Problem, utf8_complaint
from speech.records import INSTRUCTION_END, Utterance, split_instruction
from speech.text import is_language_code, language_code

KEYS = ("id", "audio", "text", "language", "speaker", "start", "duration", "channel", "keywords", "prompt_audio",
        "prompt_text", "attributes")  # fmt: skip
"""Keys of our own jsonl, in the order in which they are written. They are the fields of `Utterance`, but for the
instruction, which stands in the text."""

OWN_FIELDS = ("speaker", "language")
"""Keys of a line that are attributes of its speech already; `attributes` names the others."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a reader understood of one line, not yet validated.

    Attributes:
        file: the manifest file, as the user wrote it.
        line: 1-based.
        folder: what a relative audio path is relative to.
        values: by key of `KEYS`; absent when the line does not have it.
        names: how the format at hand calls a key (`source` for `audio`), for messages.
    """

    file: str
    line: int
    folder: Path
    values: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)

    def problem(self, key: str | None, message: str) -> Problem:
        """A defect of this line, under the name that the format gives the key."""
        return Problem(file=self.file, line=self.line, key=None if key is None else self.names.get(key, key),
                       message=message)  # fmt: skip


def code_of(language: str) -> str | None:
    """ISO 639 code of a language written in some other way (`English`, `en-US`, `<|zh|>`), or None if unknown."""
    code = language_code(language.strip().strip("<|>"))
    return code if is_language_code(code) else None


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PREFIX = re.compile(r"\s*language\s+(?P<name>[^<\n]+?)\s*<asr_text>", re.IGNORECASE)


def split_language_prefix(text: str) -> tuple[str, str | None]:
    """`language English<asr_text>hello`, the form in which Qwen3-ASR is taught, → (`hello`, `en`).

    The name `None` and text without a prefix give no language. A name without a known code is returned as it is, so
    that validation names it.
    """
    match = _PREFIX.match(text)
    if match is None:
        return text, None
    name = match["name"]
    return text[match.end() :], None if name.lower() == "none" else code_of(name) or name


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when none is close."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def check_entry(entry: Entry, require_text: bool) -> Utterance | list[Problem]:
    """The utterance that a line describes, or everything that is wrong with it (files are not looked at)."""
    problems: list[Problem] = []
    values, instruction, claimed = entry.values, "", None
    written = values.get("text")
    if isinstance(written, str):
        written, claimed = split_language_prefix(written)
        instruction, said = split_instruction(written)
        values = {**values, "text": said}
        if INSTRUCTION_END in said:
            problems.append(entry.problem("text", f"holds {INSTRUCTION_END} more than once"))

    # A text to be spoken names a voice, and need not have been recorded.
    required = ("id", "text" if require_text else "", "audio" if values.get("prompt_audio") is None else "")
    good: dict[str, Any] = {}
    for key, check in (_CHECKS_WITH_TEXT if require_text else _CHECKS).items():
        value = values.get(key)
        if value is None:
            if key in required:
                problems.append(entry.problem(key, "missing"))
        elif (complaint := check(value)) is not None:
            problems.append(entry.problem(key, complaint))
        else:
            good[key] = value

    language, text, audio = good.get("language"), good.get("text", ""), good.get("audio")
    if claimed is not None:
        complaint = _language(claimed)
        if complaint is None and language is not None and code_of(language) != claimed:
            complaint = f"begins with the language {claimed!r}, but the line says {language!r}"
        if complaint is not None:
            problems.append(entry.problem("text", complaint))
        language = claimed
    if audio is None:
        for key in ("start", "duration", "channel"):
            if values.get(key) is not None:
                problems.append(entry.problem(key, "is given, but there is no audio"))
    text = text.strip()
    if text:
        for keyword in good.get("keywords", ()):
            if not _occurs(keyword, text):
                problems.append(entry.problem("keywords", f"{keyword!r} does not occur in the transcript"))
    if problems:
        return problems
    duration, prompt_audio = good.get("duration"), good.get("prompt_audio")
    return Utterance(
        id=good["id"],
        audio="" if audio is None else _absolute(entry.folder, audio),
        text=text,
        language=None if language is None else language_code(language),
        speaker=good.get("speaker"),
        start=float(good.get("start", 0.0)),
        duration=None if duration is None else float(duration),
        channel=good.get("channel"),
        keywords=tuple(good.get("keywords", ())),
        prompt_audio=None if prompt_audio is None else _absolute(entry.folder, prompt_audio),
        prompt_text=good.get("prompt_text", "").strip(),
        instruction=instruction.strip(),
        attributes=dict(good.get("attributes", {})),
    )


def _absolute(folder: Path, path: str) -> str:
    """`str((folder / path).absolute())`, at a tenth of the cost where many files lie in one folder."""
    below, slash, name = path.rpartition("/")
    if name in ("", ".") or path.startswith("//"):
        return str((folder / path).absolute())
    # The working directory may change between two manifests.
    here = "" if folder.is_absolute() else os.getcwd()  # noqa: PTH109 - a Path for each line is what takes long
    return f"{_absolute_folder(folder, below + slash, here).rstrip('/')}/{name}"


@lru_cache(maxsize=4096)
def _absolute_folder(folder: Path, path: str, here: str) -> str:
    return str((here / folder / path).absolute())


def _any_text(value: Any) -> str | None:
    return utf8_complaint(value) if isinstance(value, str) else f"must be a string, is {_kind(value)}"


def _filled_text(value: Any) -> str | None:
    return _any_text(value) or (None if value.strip() else "is empty")


def _path(value: Any) -> str | None:
    complaint = _filled_text(value)
    if complaint is None and _ADDRESS.match(value):
        complaint = f"is an address on the network; recordings must be files: {value!r}"
    return complaint


def _language(value: Any) -> str | None:
    complaint = _any_text(value)
    if complaint is None and not is_language_code(value):
        meant = code_of(value)
        hint = f"; did you mean {meant!r}?" if meant else ""
        complaint = f"{value!r} is not an ISO 639-1 code such as 'en' or 'zh'{hint}"
    return complaint


def _number(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number of seconds, is {_kind(value)}"
    # An integer may be too large for a float.
    return None if -1e12 < value < 1e12 else f"must be a finite number of seconds, is {value}"


def _not_negative(value: Any) -> str | None:
    return _number(value) or (None if value >= 0 else f"must not be negative, is {value:g}")


def _positive(value: Any) -> str | None:
    return _number(value) or (None if value > 0 else f"must be more than 0 seconds, is {value:g}")


def _place(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be the number of a channel, is {_kind(value)}"
    return None if value >= 0 else f"channels are counted from 0, is {value}"


def _words(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"must be a list of strings, is {_kind(value)}"
    if not all(isinstance(word, str) and word.strip() for word in value):
        return "must be a list of non-empty strings"
    return None


def _classes(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"must be an object of names and classes, is {_kind(value)}"
    for name, label in value.items():
        if not name.strip():
            return "has an attribute without a name"
        if name in OWN_FIELDS:
            return f"{name!r} is a key of the line itself"
        if not isinstance(label, str) or not label.strip():
            return f"the class of {name!r} must be a non-empty string, is {json.dumps(label, ensure_ascii=False)}"
    return None


def _occurs(keyword: str, text: str) -> bool:
    """Whether a keyword is in the transcript, up to case, spacing and punctuation, which scoring ignores too."""
    return keyword in text or _letters(keyword) in _letters(text)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _kind(value: Any) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "id": _filled_text,
    "audio": _path,
    "prompt_audio": _path,
    "prompt_text": _any_text,
    "text": _any_text,
    "language": _language,
    "speaker": _filled_text,
    "start": _not_negative,
    "duration": _positive,
    "channel": _place,
    "keywords": _words,
    "attributes": _classes,
}
_CHECKS_WITH_TEXT = _CHECKS | {"text": _filled_text}
