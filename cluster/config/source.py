"""Where configuration values come from: YAML files with their line numbers, and overrides from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speech.errors import Problem, UserError

COMMAND_LINE = "command line"


@dataclass
class Source:
    """Merged values and where each came from.

    Attributes:
        values: plain nested data; interpolations (`${seed}`, `${oc.env:HOME}`) are resolved.
        origins: dotted key → (file or `COMMAND_LINE`, 1-based line or None).
        raw: dotted key → text as typed, for overrides.
        files: the files read, the base first.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    raw: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def problem(self, key: str, message: str) -> Problem:
        """A problem at the place where a key, something below it, or the section around it was written."""
        below = (k for k in self.origins if k.startswith(f"{key}."))
        place = key if key in self.origins else next(below, key)
        while place and place not in self.origins:
            place = place.rpartition(".")[0]
        named = self.files[-1] if self.files else COMMAND_LINE
        file, line = self.origins.get(place, (named, None))
        return Problem(file, line, key or None, message)

    def layer(self, key: str) -> int:
        """Which file wrote a key, something below it, or the section around it last: 0 for the base; above all files
        the command line; −1 when nobody did."""
        places = [k for k in self.origins if k == key or k.startswith(f"{key}.")]
        while not places and key:
            key = key.rpartition(".")[0]
            places = [key] if key in self.origins else []
        layers = [*self.files, COMMAND_LINE]
        return max((layers.index(self.origins[place][0]) for place in places), default=-1)


def read_source(
    path: str | Path | None, overrides: Sequence[str], known: dict[str, Any], problems: list[Problem]
) -> Source:
    """Read a YAML file (and the base named by its `defaults` key), then apply `key=value` overrides in order.

    Args:
        path: the file, or None to build on the defaults alone.
        overrides: dotted, values in YAML syntax; `rewards.items.0.weight=2` reaches into a list.
        known: the schema's defaults, so that `${seed}` works and a list's item can be set where the file has none.
        problems: receives overrides and interpolations that make no sense.

    Raises:
        UserError: the file is missing or is not YAML; nothing sensible can be said about its keys then.
    """
    source = Source()
    tree = OmegaConf.create(known)
    if path is not None:
        tree = _merge(tree, _read_file(Path(path), source, ()))
    for override in overrides:
        _apply(tree, override, source, problems)
    try:
        source.values = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        problems.append(source.problem(_dotted(str(error.full_key)), str(error).splitlines()[0]))
    return source


def _read_file(path: Path, source: Source, including: tuple[Path, ...]) -> DictConfig:
    if path.resolve() in including:
        raise UserError(f"{path}: `defaults` includes this file from itself")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the configuration: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = OmegaConf.create(text) if text.strip() and node is not None else OmegaConf.create()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise UserError(str(Problem(str(path), line, None, f"not valid YAML: {error.problem}"))) from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: expected `key: value` lines at the top of the file")
    base = tree.pop("defaults", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: defaults: expected the name of one YAML file, got {base!r}")
        tree = _merge(_read_file(path.parent / base, source, (*including, path.resolve())), tree)
    source.files.append(str(path))
    for key, line in _lines(node, ""):
        source.origins[key] = (str(path), line)
    return tree


def _merge(base: DictConfig, over: DictConfig) -> DictConfig:
    """Sections merge key by key, lists are replaced."""
    merged = OmegaConf.merge(base, over)
    assert isinstance(merged, DictConfig)
    return merged


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    """(dotted key, 1-based line) for every key and list item below a YAML node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            yield path, key.start_mark.line + 1
            yield from _lines(value, f"{path}.")
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield f"{prefix}{i}", item.start_mark.line + 1
            yield from _lines(item, f"{prefix}{i}.")


def _apply(tree: DictConfig, override: str, source: Source, problems: list[Problem]) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or any(not part for part in key.split(".")):
        problems.append(Problem(COMMAND_LINE, None, None, f"{override!r} is not of the form key=value"))
        return
    # What the file said below this key no longer holds.
    for stale in [k for k in (*source.origins, *source.raw) if k == key or k.startswith(f"{key}.")]:
        source.origins.pop(stale, None)
        source.raw.pop(stale, None)
    source.origins[key] = (COMMAND_LINE, None)
    source.raw[key] = text
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])
        OmegaConf.update(tree, key, OmegaConf.to_container(value)["value"], merge=False, force_add=True)  # type: ignore[call-overload,index]
    except yaml.MarkedYAMLError as error:
        problems.append(Problem(COMMAND_LINE, None, key, f"{text!r} is not valid YAML: {error.problem}"))
    except OmegaConfBaseException as error:
        problems.append(Problem(COMMAND_LINE, None, key, str(error).splitlines()[0]))


def _dotted(key: str) -> str:
    """OmegaConf's `items[0].name` → `items.0.name`."""
    return key.replace("[", ".").replace("]", "")
