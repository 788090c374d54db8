"""The keys of a schema, as its dataclasses declare them: dotted path, type, default, meaning.

Knows nothing of this project's keys. A key's meaning is the string below its declaration.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any

from speech.runtime.schema import without_none

REQUIRED = "???"
"""OmegaConf's mark for a value that must be given."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a schema.

    Attributes:
        path: dotted; items of a list of sections are `section[]`.
        type: its resolved annotation.
        default: plain data, or `REQUIRED`.
        help: its meaning; empty where none is given.
    """

    path: str
    type: Any
    default: Any
    help: str

    @property
    def is_list(self) -> bool:
        return typing.get_origin(without_none(self.type)) is list

    @property
    def section(self) -> type | None:
        """The dataclass behind this key, when it is a section or a list of sections."""
        inner = without_none(self.type)
        if self.is_list:
            inner = typing.get_args(inner)[0]
        return inner if dataclasses.is_dataclass(inner) and isinstance(inner, type) else None


def keys_of(cls: type, prefix: str = "") -> list[Key]:
    """The keys of one dataclass, in order, below a dotted prefix."""
    hints = typing.get_type_hints(cls, include_extras=True)
    help_texts, dot = meanings(cls), f"{prefix}." if prefix else ""
    return [
        Key(f"{dot}{field.name}", hints[field.name], _default(field), help_texts.get(field.name, ""))
        for field in dataclasses.fields(cls)
    ]


def walk(cls: type, prefix: str = "") -> Iterator[Key]:
    """All keys below a dataclass, sections before their content."""
    for key in keys_of(cls, prefix):
        yield key
        if key.section is not None:
            yield from walk(key.section, f"{key.path}[]" if key.is_list else key.path)


@cache
def meanings(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass and of its bases, on one line."""
    found: dict[str, str] = {}
    for owner in reversed([owner for owner in cls.__mro__ if dataclasses.is_dataclass(owner)]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def nearest(path: str, known: list[str]) -> str | None:
    """The known dotted key that a wrong one most likely meant, or None when nothing is close.

    A key of the right name in another section (`learner.kl_coef` for `learner.loss.kl_coef`) is preferred to one that
    merely looks alike.
    """
    name = path.rpartition(".")[2]
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    if same_name:
        return max(same_name, key=lambda k: difflib.SequenceMatcher(None, path, k).ratio())
    by_name = difflib.get_close_matches(name, {k.rpartition(".")[2] for k in known}, n=3, cutoff=0.75)
    candidates = [k for k in known if k.rpartition(".")[2] in by_name] or known
    matches = difflib.get_close_matches(path, candidates, n=1, cutoff=0.5)
    return matches[0] if matches else None


def defaults(cls: type) -> dict[str, Any]:
    """All defaults of a schema as plain data; required keys hold `REQUIRED`."""
    plain: dict[str, Any] = {}
    for field, key in zip(dataclasses.fields(cls), keys_of(cls), strict=True):
        nested = key.default == REQUIRED and key.section is not None
        plain[field.name] = defaults(key.section) if nested and key.section is not None else key.default
    return plain


def to_plain(value: Any) -> Any:
    """Dataclasses → dicts and tuples → lists, recursively, ready for YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return REQUIRED if field.default_factory is MISSING else to_plain(field.default_factory())
