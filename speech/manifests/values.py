"""One JSON object from a line of text, if what it holds can be kept and written out again."""

from __future__ import annotations

import json
from typing import Any

from speech.errors import UserError, utf8_complaint


class BadObjectError(UserError):
    """A line that is no JSON object, or one that means nothing certain.

    Attributes:
        key: the key at fault, or None.
        message: what is wrong with it.
    """

    def __init__(self, key: str | None, message: str) -> None:
        super().__init__(message if key is None else f"{key}: {message}")
        self.key, self.message = key, message


def decode(text: str) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        BadObjectError: the line is not JSON or no object, is nested too deeply, holds a key twice in one object (of
            which JSON readers keep the one or the other), or a string that cannot be written as UTF-8.
    """
    try:
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
