"""Annotations as a schema for plain data: types, choices, ranges and unknown keys, all problems at once.

Knows nothing of this project's keys. Beside the type, `Annotated` may hold `OneOf`, `Ge` and `Le`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Le

Section = TypeVar("Section")
Problems = list[tuple[str, str]]
"""(dotted path, message) each; items of lists are numbers."""
Hint = Callable[[str], str]
"""What to add to `unknown key`, by its dotted path, in which items of lists are `[]`."""

_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True, slots=True)
class OneOf:
    """In `Annotated[str, OneOf(names)]`: one of a collection's names, or one of `also`."""

    names: Collection[str]
    also: tuple[str, ...] = ()


def bind(
    cls: type[Section], data: Any, hint: Hint, typed: Mapping[str, str] | None = None
) -> tuple[Section | None, Problems]:
    """Plain data → an instance of a dataclass.

    Args:
        cls: its fields' annotations say what the data should be; fields may be dataclasses, or lists of them.
        data: nested dicts, lists and scalars.
        hint: for unknown keys.
        typed: texts as typed, by dotted path, so that `name=2024` can stay text.

    Returns:
        The instance, or None; and what is wrong.
    """
    binder = _Binder(hint, typed or {})
    found = binder.item(cls, data, "")
    return None if binder.problems else found, binder.problems


def bind_keys(kinds: Mapping[str, Any], required: Collection[str], data: Any, hint: Hint) -> tuple[Any, Problems]:
    """Plain data → keyword arguments; see `bind`.

    Args:
        kinds: annotation of each known key.
        required: keys that must be given.
    """
    binder = _Binder(hint, {})
    found = binder.keys(kinds, required, data, "")
    return None if binder.problems else found, binder.problems


def without_none(kind: Any) -> Any:
    """`X | None` → `X`; anything else unchanged."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return kind


class _MisfitError(Exception):
    """A value does not fit; the message says what would."""


class _Binder:
    def __init__(self, hint: Hint, typed: Mapping[str, str]) -> None:
        self.problems: Problems = []
        self._hint, self._typed = hint, typed

    def item(self, kind: Any, value: Any, path: str) -> Any:
        """`value`, with a problem written down rather than raised."""
        try:
            return self.value(kind, value, path)
        except _MisfitError as error:
            self.problems.append((path, str(error)))

    def value(self, kind: Any, value: Any, path: str) -> Any:
        inner = without_none(kind)
        if value is None and inner is not kind:
            return None
        origin, args = typing.get_origin(inner), typing.get_args(inner)
        if origin is Annotated:
            found = self.value(args[0], value, path)
            for note in args[1:]:
                _check(note, found, value)
            return found
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            return self.section(inner, value, path)
        if origin in (list, tuple):
            if not isinstance(value, list | tuple):
                raise _MisfitError(f"expected a list, got {_show(value)}")
            return origin(self.item(args[0], item, f"{path}.{place}") for place, item in enumerate(value))
        if origin is dict:
            return {key: self.item(args[1], item, f"{path}.{key}") for key, item in _mapping(value).items()}
        if origin is Literal and value not in args:
            raise _MisfitError(_not_one_of(args, value))
        return self.scalar(inner, value, path) if inner in _SCALARS else value

    def section(self, cls: Any, data: Any, path: str) -> Any:
        kinds = typing.get_type_hints(cls, include_extras=True)
        fields = dataclasses.fields(cls)
        required = [f.name for f in fields if f.default is MISSING and f.default_factory is MISSING]
        before = len(self.problems)
        # A YAML key with nothing below it holds None.
        values = self.keys({f.name: kinds[f.name] for f in fields}, required, {} if data is None else data, path)
        if len(self.problems) > before:
            return None
        try:
            return cls(**values)
        except ValueError as error:  # a check across keys in `__post_init__`
            raise _MisfitError(str(error)) from error

    def keys(self, kinds: Mapping[str, Any], required: Collection[str], data: Any, path: str) -> dict[str, Any]:
        dot, given, values = f"{path}." if path else "", _mapping(data), {}
        for key in [key for key in given if key not in kinds]:
            generic = re.sub(r"\.\d+(?=\.)", "[]", f"{dot}{key}")
            self.problems.append((f"{dot}{key}", f"unknown key{self._hint(generic)}"))
        for key, kind in kinds.items():
            if key in given:
                values[key] = self.item(kind, given[key], f"{dot}{key}")
            elif key in required:
                self.problems.append((f"{dot}{key}", "required, but not given"))
        return values

    def scalar(self, kind: type, value: Any, path: str) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is str and value is not None and path in self._typed:
            return self._typed[path] if not isinstance(value, str) else value
        if kind is int and is_number and float(value).is_integer():  # `1e3` is a float to YAML
            return int(value)
        if kind is float and is_number:
            return float(value)
        if kind in (bool, str) and isinstance(value, kind):
            return value
        hint = " (quote it to make it text)" if kind is str and is_number else ""
        raise _MisfitError(f"expected {_SCALARS[kind]}, got {_show(value)}{hint}")


def _check(note: Any, found: Any, given: Any) -> None:
    """Raise `_MisfitError` when a value of the right type is outside the declared choices or range."""
    if isinstance(note, OneOf) and found not in note.names and found not in note.also:
        raise _MisfitError(_not_one_of(note.names, given))
    # Written so that NaN fails.
    if isinstance(note, Ge) and not found >= note.ge:
        raise _MisfitError(f"must be at least {note.ge:g}, got {_show(given)}")
    if isinstance(note, Le) and not found <= note.le:
        raise _MisfitError(f"must be at most {note.le:g}, got {_show(given)}")


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _MisfitError(f"expected a section with keys, got {_show(value)}")
    return {str(key): item for key, item in value.items()}


def _not_one_of(choices: Collection[Any], value: Any) -> str:
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    guess = f"; did you mean `{close[0]}`?" if close else ""
    return f"expected one of {', '.join(f'`{choice}`' for choice in choices)}, got {_show(value)}{guess}"


def _show(value: Any) -> str:
    """A value as the user would write it, cut to a length that fits a message."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section with keys"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
