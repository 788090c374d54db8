"""Files of lines and of JSON objects, compressed by gzip or not, and the reader of our own manifests."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from speech.errors import Problem, utf8_complaint
from speech.manifests.entries import KEYS, Entry, nearest

Line = tuple[int, dict[str, Any]]
"""A 1-based line number and the object on that line."""


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a file: bytes [start, end), whole lines. Lines are numbered from 1 in each span."""

    start: int
    end: int


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed by gzip, whatever its name."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def read_lines(path: Path, span: Span | None = None, strip: bool = True) -> Iterator[tuple[int, str] | Problem]:
    """Lines of a text file with their 1-based numbers; blank ones are left out, undecodable ones are problems.

    Args:
        path: may be compressed by gzip.
        span: part of a file that is not compressed; None takes all.
        strip: take white space off both ends, as opposed to the end of the line alone.
    """
    span = span or Span(0, sys.maxsize)
    position, number = span.start, 0
    with cast(BinaryIO, gzip.open(path)) if is_gzip(path) else path.open("rb") as file:
        file.seek(position)
        try:
            for number, raw in enumerate(file, start=1):
                first = position == 0
                position += len(raw)
                if position > span.end:
                    break
                try:
                    text = raw.decode("utf-8-sig" if first else "utf-8")
                except UnicodeDecodeError as error:
                    message = f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1})"
                    yield Problem(file=str(path), line=number, key=None, message=message)
                    continue
                if stripped := text.strip():
                    yield number, stripped if strip else text.rstrip("\r\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Problem(file=str(path), line=number + 1, key=None, message=f"cannot be decompressed: {error}")


def read_objects(path: Path, span: Span | None = None) -> Iterator[Line | Problem]:
    """JSON objects of a file, one a line; a line that is none, or cannot be written out again, is a problem."""
    for line in read_lines(path, span):
        if isinstance(line, Problem):
            yield line
            continue
        number, text = line
        try:
            yield number, decode_object(text)
        except BadObjectError as error:
            yield Problem(file=str(path), line=number, key=error.key, message=error.message)


def entries(
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

    return entries(path, understand, span)


class BadObjectError(Exception):
    """A line that is no JSON object, or one that means nothing certain.

    Attributes:
        key: the key at fault, or None.
        message: what is wrong with it.
    """

    def __init__(self, key: str | None, message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def decode_object(text: str) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        BadObjectError: the line is not JSON or no object, is nested too deeply, holds a key twice in one object (of
            which JSON readers keep the one or the other), or a string that cannot be written as UTF-8.
    """
    try:
        try:
            value = _FAST.decode(text)
            # Each pair has its colon: where there are no others, no key has occurred twice.
            colons = text.count(":")
            certain = isinstance(value, dict) and (colons == len(value) or colons == _pairs(value))
        except (msgspec.DecodeError, RecursionError):
            certain = False
        if not certain:
            value = _DECODER.decode(text)
        if not isinstance(value, dict):
            raise BadObjectError(None, "is not a JSON object {…}")
        if "\\ud" in text or "\\uD" in text:  # the only way in for half of a pair: the line itself is UTF-8
            for key, item in value.items():
                _check_utf8(key, item)
        return value
    except json.JSONDecodeError as error:
        raise BadObjectError(None, f"invalid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise BadObjectError(None, "is nested too deeply") from None
    except ValueError as error:
        # The interpreter's limit on the digits of an integer (CVE-2020-10735).
        raise BadObjectError(None, "invalid JSON: holds a number of thousands of digits") from error


def _pairs(value: dict[str, Any]) -> int:
    """The number of pairs of a key and a value in an object and all that is in it."""
    count, waiting = 0, list[Any]((value,))
    while waiting:  # a loop: this is done for every line
        item = waiting.pop()
        if type(item) is dict:
            count += len(item)
            item = item.values()
        waiting += [part for part in item if type(part) is dict or type(part) is list]
    return count


def _check_utf8(key: str, item: Any) -> None:
    complaint = utf8_complaint(json.dumps([key, item], ensure_ascii=False))
    if complaint is not None:
        raise BadObjectError(_printable(key), complaint)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadObjectError(_printable(twice), "occurs twice in one object")
    return values


def _printable(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode()


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_FAST: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
"""Four times as fast, but silent about keys that occur twice; and what it refuses, the other explains."""
