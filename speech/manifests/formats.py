"""Which manifest formats there are, and telling them apart by content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from speech.errors import InputError, Problem, UserError, utf8_complaint
from speech.manifests.entries import KEYS, Entry, nearest
from speech.manifests.jsonl import read_chat, read_funasr, read_lines, read_objects, read_own
from speech.manifests.kaldi import read_kaldi
from speech.manifests.seed_tts import is_seed_tts, read_seed_tts


@dataclass(frozen=True, slots=True)
class Format:
    """A manifest format.

    Attributes:
        read: yields the entries of a manifest and the problems that kept a line from becoming one.
        keys: a JSON object with all of these keys is a line of this format; empty for what is not JSON.
        expects: one phrase for error messages.
    """

    read: Callable[[Path], Iterator[Entry | Problem]]
    keys: frozenset[str]
    expects: str


FORMATS = {
    "chat": Format(read_chat, frozenset({"messages"}), "chat jsonl: messages, audios"),
    "funasr": Format(read_funasr, frozenset({"source", "target"}), "FunASR jsonl: source, target (key)"),
    "jsonl": Format(read_own, frozenset({"audio", "text"}), f"jsonl: id, audio, text ({', '.join(KEYS[3:])})"),
    "kaldi": Format(read_kaldi, frozenset(), "a Kaldi directory: wav.scp, text (utt2spk, segments)"),
    "seed_tts": Format(read_seed_tts, frozenset(), "seed-tts-eval's meta.lst: utt|prompt_text|prompt_wav|text(|wav)"),
}
"""Registry of formats, by the name used in `format=`; their order is the order of detection."""

_LOOKED_AT = 20

_FOREIGN = {
    "audio_filepath": "looks like a NeMo manifest: rename audio_filepath to audio and give each line an id",
    "wav": "looks like a WeNet data list: rename wav to audio, txt to text and key to id",
}


def detect_format(path: Path) -> str:
    """Name of the format (a key of `FORMATS`) of a manifest, by its content.

    Raises:
        UserError: there is no such file, or it looks like no known format; the message says what was found.
    """
    if utf8_complaint(str(path.absolute())) is not None:
        # Paths stand in every record of a run.
        message = "the name is not UTF-8; rename the file or its folder"
        raise InputError("no manifest", [Problem(file=repr(str(path)), line=None, key=None, message=message)])
    if not path.exists():
        raise InputError("no manifest", [Problem(file=str(path), line=None, key=None, message="no such file")])
    if path.is_dir():
        missing = [name for name in ("wav.scp", "text") if not (path / name).is_file()]
        if missing:
            raise _unknown(path, None, f"is a directory without {' and '.join(missing)}")
        return "kaldi"
    if path.name in ("wav.scp", "segments", "utt2spk"):
        raise _unknown(path, None, f"is part of a Kaldi directory: give the directory, {path.parent}")
    first = next((item for item in read_lines(path) if not isinstance(item, Problem)), None)
    if first is not None and not first[1].startswith(("{", "[")) and is_seed_tts(first[1]):
        return "seed_tts"
    found: tuple[int, list[str]] | None = None
    problems: list[Problem] = []
    for item in islice(read_objects(path), _LOOKED_AT):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        line, values = item
        for name, known in FORMATS.items():
            if known.keys and known.keys <= values.keys():
                return name
        if values:
            found = found or (line, sorted(values))
    if found is None:
        if first is not None and first[1].startswith("{") and first[1] != "{":
            raise InputError(f"{path}: no line can be read", problems)
        raise _unknown(path, None, _describe_text(path, first))
    line, keys = found
    for key, hint in _FOREIGN.items():
        if key in keys:
            raise _unknown(path, line, hint)
    # Some key is missing or misspelt: take the likeliest format, whose validation then names the key on every line.
    for name, known in FORMATS.items():
        if not known.keys.isdisjoint(keys):
            return name
    if any(nearest(key, KEYS) for key in keys):
        return "jsonl"
    raise _unknown(path, line, f"has the keys {', '.join(keys)}")


def _describe_text(path: Path, first: tuple[int, str] | None) -> str:
    if first is None:
        return "holds no text" if path.stat().st_size else "is empty"
    text = first[1]
    if text.startswith("["):
        return "looks like one JSON array; write one object a line"
    if text in ("{", "[{"):
        return "looks like JSON spread over several lines; write one object a line"
    for separator, name in (("\t", "tab-separated text"), (",", "comma-separated text")):
        if separator in text:
            return f"looks like {name}; write one JSON object a line"
    return "looks like plain text; write one JSON object a line"


def _unknown(path: Path, line: int | None, message: str) -> UserError:
    expected = "; ".join(known.expects for known in FORMATS.values())
    problem = Problem(file=str(path), line=line, key=None, message=message)
    return InputError(f"not a manifest of a known format. Expected one of: {expected}", [problem])
