"""Readers for manifests with one JSON object a line: our own, FunASR's and chat data."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from speech.errors import Problem, utf8_complaint
from speech.manifests.entries import KEYS, Entry, code_of, nearest

Line = tuple[int, dict[str, Any]]
"""A 1-based line number and the object on that line."""


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a file: bytes [start, end), whole lines. Lines are numbered from 1 in each span."""

    start: int
    end: int


def read_lines(path: Path, span: Span | None = None) -> Iterator[tuple[int, str] | Problem]:
    """Lines of a text file with their 1-based numbers; blank ones are left out, undecodable ones are problems."""
    span = span or Span(0, sys.maxsize)
    position = span.start
    with path.open("rb") as file:
        file.seek(position)
        for number, raw in enumerate(file, start=1):
            first = position == 0
            position += len(raw)
            if position > span.end:
                break
            try:
                text = raw.decode("utf-8-sig" if first else "utf-8").strip()
            except UnicodeDecodeError as error:
                message = f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1})"
                yield Problem(file=str(path), line=number, key=None, message=message)
                continue
            if text:
                yield number, text


def read_objects(path: Path, span: Span | None = None) -> Iterator[Line | Problem]:
    """JSON objects of a file, one a line; a line that is none, or cannot be written out again, is a problem."""
    for line in read_lines(path, span):
        if isinstance(line, Problem):
            yield line
            continue
        number, text = line
        try:
            yield number, _decode(text)
        except _BadObjectError as error:
            yield Problem(file=str(path), line=number, key=error.key, message=error.message)


def _entries(
    path: Path, understand: Callable[[int, dict[str, Any]], Iterator[Entry | Problem]], span: Span | None = None
) -> Iterator[Entry | Problem]:
    """What `understand` makes of each object of a file, and the problems of the lines that are no object."""
    for item in read_objects(path, span):
        if isinstance(item, Problem):
            yield item
        else:
            yield from understand(*item)


def read_own(path: Path, span: Span | None = None) -> Iterator[Entry | Problem]:
    """Our jsonl: the keys of `KEYS`, of which `id`, `text` and either `audio` or `prompt_audio` must be there.

    An unknown key is a problem: a misspelt `keyword` would otherwise silently train without its reward.
    """

    file, folder, known = str(path), path.parent, frozenset(KEYS)

    def understand(number: int, values: dict[str, Any]) -> Iterator[Entry | Problem]:
        if not values.keys() <= known:
            for key in (key for key in values if key not in known):
                near = nearest(key, KEYS)
                hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(KEYS)}"
                yield Problem(file=file, line=number, key=key, message=f"unknown key; {hint}")
            values = {key: values[key] for key in KEYS if key in values}
        yield Entry(file, number, folder, values)

    return _entries(path, understand, span)


def read_funasr(path: Path) -> Iterator[Entry | Problem]:
    """FunASR's jsonl: `source` (audio path), `target` (transcript), optional `key` and `text_language` (`<|zh|>`).

    Its other keys (lengths, emotion and event labels) carry nothing that training needs and are left alone.
    """
    names = {"id": "key", "audio": "source", "text": "target", "language": "text_language"}
    ids = _Ids()

    def understand(number: int, values: dict[str, Any]) -> Iterator[Entry | Problem]:
        fields = {key: values[name] for key, name in names.items() if name in values}
        fields.setdefault("id", ids.from_audio(fields.get("audio"), number))
        fields["language"] = _plain_language(fields.get("language"))
        yield Entry(str(path), number, path.parent, fields, names)

    return _entries(path, understand)


def read_chat(path: Path) -> Iterator[Entry | Problem]:
    """Chat jsonl: `messages` with one `<audio>` in a user message, `audios` with its path; the last message is the
    assistant's transcript. Optional `id`.

    Fun-ASR writes the path into the user message instead: `<|startofspeech|>!a.wav<|endofspeech|>`, and an optional
    `key`.
    """
    names = {"audio": "audios", "text": "messages"}
    ids = _Ids()

    def understand(number: int, values: dict[str, Any]) -> Iterator[Entry | Problem]:
        entry = Entry(str(path), number, path.parent, {}, names)
        try:
            audio = _only_audio(values)
            reply = _reply(values)
        except _MalformedChatError as error:
            yield entry.problem(error.key, error.message)
            return
        name = values.get("id", values.get("key"))
        fields = {"id": ids.from_audio(audio, number) if name is None else name, "audio": audio, "text": reply}
        yield Entry(str(path), number, path.parent, fields, names)

    return _entries(path, understand)


def _plain_language(value: Any) -> Any:
    return (code_of(value) or value) if isinstance(value, str) else value


_FUN_ASR = re.compile(r"<\|startofspeech\|>!(.*?)<\|endofspeech\|>", re.DOTALL)


class _MalformedChatError(Exception):
    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def _only_audio(values: dict[str, Any]) -> str:
    """The path of the conversation's single audio file."""
    audios = values.get("audios")
    audios = [audios] if isinstance(audios, str) else audios
    if audios is None:
        audios = [part.get("audio") or part.get("audio_url") for part in _parts(values) if part.get("type") == "audio"]
        audios += [path for role, text in _texts(values) if role == "user" for path in _FUN_ASR.findall(text)]
        if not audios:
            message = "missing; expected `audios`, a part of type audio, or <|startofspeech|>!path<|endofspeech|>"
            raise _MalformedChatError("audio", message)
    if not isinstance(audios, list) or len(audios) != 1 or not isinstance(audios[0], str):
        raise _MalformedChatError("audio", "must be a list with the path of exactly one audio file")
    written = sum(text.count("<audio>") for role, text in _texts(values) if role == "user")
    if "audios" in values and written != 1:
        raise _MalformedChatError("text", f"the user messages hold {written} <audio> placeholders, expected 1")
    return audios[0]


def _reply(values: dict[str, Any]) -> str:
    texts = _texts(values)
    if not texts or texts[-1][0] != "assistant":
        raise _MalformedChatError("text", "the last message must be the assistant's (the transcript)")
    return texts[-1][1]


def _texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of each message."""
    found = []
    for message in _messages(values):
        content = message["content"]
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
        found.append((message["role"], content))
    return found


def _parts(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Typed parts (`{"type": "audio", …}`) of the messages whose content is a list."""
    contents = [message["content"] for message in _messages(values)]
    return [part for content in contents if isinstance(content, list) for part in content]


def _messages(values: dict[str, Any]) -> list[dict[str, Any]]:
    messages = values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _MalformedChatError("text", "must be a non-empty list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _MalformedChatError("text", "each message must be an object with 'role' and 'content'")
        content = message.get("content")
        of_parts = isinstance(content, list) and all(
            isinstance(part, dict) and isinstance(part.get("text") or "", str) for part in content
        )
        if not isinstance(content, str) and not of_parts:
            raise _MalformedChatError("text", "the 'content' of a message must be a string or a list of typed parts")
    return messages


class _Ids:
    """Ids for formats that have none: the audio path as written, numbered when it comes again."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def from_audio(self, audio: Any, line: int) -> str:
        if not isinstance(audio, str):
            return f"line-{line}"
        count = self._seen[audio] = self._seen.get(audio, 0) + 1
        return audio if count == 1 else f"{audio}#{count}"


class _BadObjectError(Exception):
    """A line that is no JSON object, or one that means nothing certain.

    Attributes:
        key: the key at fault, or None.
        message: what is wrong with it.
    """

    def __init__(self, key: str | None, message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def _decode(text: str) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        _BadObjectError: the line is not JSON or no object, is nested too deeply, holds a key twice in one object (of
            which JSON readers keep the one or the other), or a string that cannot be written as UTF-8.
    """
    try:
        try:
            value = _FAST.decode(text)
            # Each pair has its colon: where there are no others, no key has occurred twice.
            certain = isinstance(value, dict) and text.count(":") == len(value)
        except (msgspec.DecodeError, RecursionError):
            certain = False
        if not certain:
            value = _DECODER.decode(text)
        if not isinstance(value, dict):
            raise _BadObjectError(None, "is not a JSON object {…}")
        if "\\ud" in text or "\\uD" in text:  # the only way in for half of a pair: the line itself is UTF-8
            for key, item in value.items():
                _check_utf8(key, item)
        return value
    except json.JSONDecodeError as error:
        raise _BadObjectError(None, f"invalid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise _BadObjectError(None, "is nested too deeply") from None
    except ValueError as error:
        # The interpreter's limit on the digits of an integer (CVE-2020-10735).
        raise _BadObjectError(None, "invalid JSON: holds a number of thousands of digits") from error


def _check_utf8(key: str, item: Any) -> None:
    complaint = utf8_complaint(json.dumps([key, item], ensure_ascii=False))
    if complaint is not None:
        raise _BadObjectError(_printable(key), complaint)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _BadObjectError(_printable(twice), "occurs twice in one object")
    return values


def _printable(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode()


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_FAST: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
"""Four times as fast, but silent about keys that occur twice; and what it refuses, the other explains."""
