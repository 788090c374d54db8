"""The reference page of the configuration, generated from where its keys are declared.

Regenerate it with `python -m cluster.config.reference > docs/configuration.md`.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterable
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Le

from cluster.config.keys import REQUIRED, Key, keys_of
from cluster.config.schema import RunConfig
from speech.runtime.schema import OneOf, without_none

REGENERATE = "python -m cluster.config.reference > docs/configuration.md"

_INTRODUCTION = f"""\
# Configuration

Every key of `speechrl train CONFIG`, its type and its default. This page is generated: `{REGENERATE}`.

- A key is set in the YAML file, or on the command line: `speechrl train run.yaml learner.lr=3e-6`. An item
  of a list is reached by its number, from 0: `rewards.items.0.weight=2`.
- Paths are relative to the current working directory.
- `defaults: base.yaml` at the top of a file builds on another file, whose path is relative to the first. Sections are
  merged key by key, lists are replaced.
- `${{seed}}` takes the value of another key and `${{oc.env:HOME}}` that of an environment variable.
- An unknown key, a wrong type or a value out of range is an error; all of them are reported at once, with
  file and line.
- A key that the objective never reads is an error where it is set with the objective or after it: in the same file, in
  a file that builds on that, or on the command line. What was set before, for another objective (in a base file, or in
  a file whose objective the command line changes), is left at its default.
- `speechrl config CONFIG` prints what a run would use.
"""


def reference_markdown() -> str:
    """The whole page: one table per section, one line per key."""
    lines = [_INTRODUCTION]
    _section(RunConfig, "", "", lines)
    return "\n".join(lines).rstrip() + "\n"


def _section(cls: type, path: str, about: str, lines: list[str]) -> None:
    lines.append(f"## {f'`{path}`' if path else 'The run'}\n")
    if about:
        lines.append(f"{about}\n")
    keys = keys_of(cls, path)
    leaves = [key for key in keys if key.section is None]
    if leaves:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|", *map(_row, leaves), ""]
    for key in keys:
        if key.section is not None:
            _section(key.section, key.path + ("[]" if key.is_list else ""), _about(key), lines)


def _about(key: Key) -> str:
    if not key.is_list:
        return key.help
    default = yaml.safe_dump(key.default, default_flow_style=True, width=1000, sort_keys=False).strip()
    return f"{key.help} A list of sections; default `{default}`."


def _row(key: Key) -> str:
    cells = (f"`{key.path}`", _type(key.type), _default(key), key.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    inner = without_none(annotation)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    simple = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"}
    if origin is Annotated:
        names = [note.names for note in args[1:] if isinstance(note, OneOf)]
        text = _choices(names[0]) if names else _type(args[0])
        text += "".join(f", ≥ {note.ge:g}" for note in args[1:] if isinstance(note, Ge))
        text += "".join(f", ≤ {note.le:g}" for note in args[1:] if isinstance(note, Le))
    elif origin in (list, tuple):
        text = f"list of {_type(args[0]).removeprefix('one of ')}"
    elif origin is dict:
        text = f"section of {_type(args[1])} by name"
    elif origin is typing.Literal:
        text = _choices(args)
    else:
        text = simple[inner]
    return text if inner is annotation else f"{text}, or null"


def _choices(names: Iterable[str]) -> str:
    return "one of " + ", ".join(f"`{name}`" for name in names)


def _default(key: Key) -> str:
    if key.default == REQUIRED:
        return "required"
    text = yaml.safe_dump(key.default, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
