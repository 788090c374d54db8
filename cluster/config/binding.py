"""Dataclasses as a schema for plain data: types, choices, ranges and near misses, all problems at once.

Knows nothing of this project's keys. A field's metadata may hold `help` (text for the reference page), `choices`
(allowed values, of the items where the field is a list), `min` and `max` (inclusive).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

REQUIRED = "???"
"""OmegaConf's mark for a value that must be given."""

Report = Callable[[str, str], None]
"""Called with (dotted key, message) for each problem."""


class _BadValueError(Exception):
    """A value does not fit; the message says what would."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a schema.

    Attributes:
        path: dotted; items of a list of sections are `section[]`.
        owner: the dataclass that declares it.
        field: its declaration.
        type: its resolved annotation.
    """

    path: str
    owner: type
    field: dataclasses.Field[Any]
    type: Any

    @property
    def section(self) -> type | None:
        """The dataclass behind this key, when it is a section or a list of sections."""
        inner = without_none(self.type)
        if typing.get_origin(inner) is list:
            inner = typing.get_args(inner)[0]
        return inner if dataclasses.is_dataclass(inner) and isinstance(inner, type) else None

    @property
    def default(self) -> Any:
        """The default value, or `REQUIRED`."""
        if self.field.default is not MISSING:
            return self.field.default
        return self.field.default_factory() if self.field.default_factory is not MISSING else REQUIRED


def without_none(annotation: Any) -> Any:
    """`X | None` → `X`; anything else unchanged."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return annotation


def fields_of(cls: type, prefix: str = "") -> list[Key]:
    """The keys that one dataclass declares, in order, below a dotted prefix."""
    hints = typing.get_type_hints(cls)
    dot = f"{prefix}." if prefix else ""
    return [Key(f"{dot}{f.name}", cls, f, hints[f.name]) for f in dataclasses.fields(cls) if f.init]


def walk(cls: type, prefix: str = "") -> Iterator[Key]:
    """All keys below a dataclass, sections before their content."""
    for key in fields_of(cls, prefix):
        yield key
        if key.section is not None:
            is_list = typing.get_origin(without_none(key.type)) is list
            yield from walk(key.section, f"{key.path}[]" if is_list else key.path)


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


def to_plain(value: Any) -> Any:
    """Dataclasses → dicts and tuples → lists, recursively, ready for YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def defaults(cls: type) -> dict[str, Any]:
    """All defaults of a schema as plain data; required keys hold `REQUIRED`."""
    plain: dict[str, Any] = {}
    for key in fields_of(cls):
        value = key.default
        if value == REQUIRED and key.section is not None and dataclasses.is_dataclass(without_none(key.type)):
            plain[key.field.name] = defaults(key.section)
        else:
            plain[key.field.name] = to_plain(value)
    return plain


def bind(cls: type, data: Any, report: Report, raw: Mapping[str, str] | None = None) -> Any:
    """Plain data → an instance of `cls`.

    Args:
        cls: the schema's dataclass.
        data: nested dicts, lists and scalars.
        report: receives every problem; the result is only meaningful when it was never called.
        raw: text as typed for keys from the command line, so that `name=2024` can stay text.

    Returns:
        The instance, or None if it could not be built.
    """
    return _Binder(report, raw or {}, [key.path for key in walk(cls)]).section(cls, data, "", "")


class _Binder:
    """Holds what is the same for every key of one `bind`. `path` is where the data is, `schema` its generic form."""

    def __init__(self, report: Report, raw: Mapping[str, str], known: list[str]) -> None:
        self._report = report
        self._raw = raw
        self._known = known

    def section(self, cls: type, data: Any, path: str, schema: str) -> Any:
        dot, schema_dot = (f"{path}." if path else ""), (f"{schema}." if schema else "")
        if data is None:  # a YAML key with nothing below it
            data = {}
        if not isinstance(data, Mapping):
            self._report(path, f"expected a section with keys, got {_show(data)}")
            return None
        keys = {key.field.name: key for key in fields_of(cls)}
        complete = True
        for name in data:
            if name not in keys:
                complete = False
                guess = nearest(f"{schema_dot}{name}", self._known)
                self._report(f"{dot}{name}", "unknown key" + (f"; did you mean `{guess}`?" if guess else ""))
        values: dict[str, Any] = {}
        for name, key in keys.items():
            given = data.get(name, REQUIRED)
            nested = dataclasses.is_dataclass(without_none(key.type))
            if given == REQUIRED and nested and key.default == REQUIRED:
                given = {}  # its own required keys are reported one by one
            if given == REQUIRED:
                if key.default == REQUIRED:
                    complete = False
                    self._report(f"{dot}{name}", "required, but not given")
                continue
            try:
                values[name] = self.value(key.type, given, f"{dot}{name}", f"{schema_dot}{name}")
                if not nested:
                    _check(key, values[name])
            except _BadValueError as error:
                complete = False
                self._report(f"{dot}{name}", str(error))
        if not complete:
            return None
        try:
            return cls(**values)
        except ValueError as error:  # a check across fields in `__post_init__`
            self._report(path, str(error))
            return None

    def value(self, annotation: Any, value: Any, path: str, schema: str) -> Any:
        inner = without_none(annotation)
        if value is None and (inner is not annotation or annotation is Any):
            return None
        origin, args = typing.get_origin(inner), typing.get_args(inner)
        if inner is Any:
            return value
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            return self.section(inner, value, path, schema)
        if origin in (list, tuple):
            if not isinstance(value, list):
                raise _BadValueError(f"expected a list, got {_show(value)}")
            items = [self.value(args[0], item, f"{path}.{i}", f"{schema}[]") for i, item in enumerate(value)]
            return items if origin is list else tuple(items)
        if origin is dict:
            if not isinstance(value, Mapping):
                raise _BadValueError(f"expected a section with keys, got {_show(value)}")
            return {str(k): self.value(args[1], v, f"{path}.{k}", f"{schema}.{k}") for k, v in value.items()}
        if origin is typing.Literal:
            if value not in args:
                raise _BadValueError(f"expected one of {_list(args)}, got {_show(value)}")
            return value
        return self.scalar(inner, value, path)

    def scalar(self, kind: Any, value: Any, path: str) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and is_number and float(value).is_integer():  # `1e3` is a float to YAML
            return int(value)
        if kind is float and is_number:
            return float(value)
        if kind is str and value is not None and (isinstance(value, str) or path in self._raw):
            return value if isinstance(value, str) else self._raw[path]
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        if kind not in names:
            raise TypeError(f"{path}: configuration cannot hold {kind!r}")
        hint = " (quote it to make it text)" if kind is str and isinstance(value, int | float) else ""
        raise _BadValueError(f"expected {names[kind]}, got {_show(value)}{hint}")


def _check(key: Key, value: Any) -> None:
    """Raise `_BadValueError` when a value of the right type is outside the declared choices or range."""
    meta = key.field.metadata
    for item in value if isinstance(value, list | tuple) else [value]:
        if item is None or item == key.default:
            continue
        if "choices" in meta and item not in meta["choices"]:
            close = difflib.get_close_matches(str(item), [str(c) for c in meta["choices"]], n=1)
            guess = f"; did you mean `{close[0]}`?" if close else ""
            raise _BadValueError(f"expected one of {_list(meta['choices'])}, got {_show(item)}{guess}")
        # Written so that NaN fails.
        if "min" in meta and not item >= meta["min"]:
            raise _BadValueError(f"must be at least {meta['min']:g}, got {_show(item)}")
        if "max" in meta and not item <= meta["max"]:
            raise _BadValueError(f"must be at most {meta['max']:g}, got {_show(item)}")


def _list(choices: Any) -> str:
    return ", ".join(f"`{c}`" for c in choices)


def _show(value: Any) -> str:
    """A value as the user would write it, cut to a length that fits a message."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section with keys"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
