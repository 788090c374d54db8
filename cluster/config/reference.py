"""The reference page of the configuration, generated from where its keys are declared.

Regenerate it with `python -m cluster.config.reference > docs/configuration.md`.
"""

from __future__ import annotations

import sys
import types
import typing
from typing import Any

import yaml

from cluster.config.binding import REQUIRED, Key, fields_of, to_plain, without_none
from cluster.config.schema import RunConfig

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
    keys = fields_of(cls, path)
    leaves = [key for key in keys if key.section is None]
    if leaves:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|", *map(_row, leaves), ""]
    for key in keys:
        if key.section is not None:
            is_list = typing.get_origin(without_none(key.type)) is list
            _section(key.section, key.path + ("[]" if is_list else ""), _about(key), lines)


def _about(key: Key) -> str:
    text = _help(key)
    if typing.get_origin(without_none(key.type)) is list:
        default = yaml.safe_dump(to_plain(key.default), default_flow_style=True, width=1000, sort_keys=False).strip()
        text = f"{text} A list of sections; default `{default}`."
    return text


def _row(key: Key) -> str:
    cells = (f"`{key.path}`", _type(key), _default(key), _help(key))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _help(key: Key) -> str:
    text = str(key.field.metadata.get("help", "")).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _type(key: Key) -> str:
    meta = key.field.metadata
    text = _type_name(key.type)
    if "choices" in meta:
        options = ", ".join(f"`{choice}`" for choice in meta["choices"])
        text = f"list of {options}" if text.startswith("list") else f"one of {options}"
        if _optional(key.type):
            text += ", or null"
    if "min" in meta:
        text += f", ≥ {meta['min']:g}"
    if "max" in meta:
        text += f", ≤ {meta['max']:g}"
    return text


def _type_name(annotation: Any) -> str:
    inner = without_none(annotation)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    simple = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"}
    if origin in (list, tuple):
        text = f"list of {_type_name(args[0])}"
    elif origin is dict:
        text = f"section of {_type_name(args[1])} by name"
    elif origin is typing.Literal:
        text = "one of " + ", ".join(f"`{choice}`" for choice in args)
    else:
        text = simple[inner]
    return f"{text}, or null" if _optional(annotation) else text


def _optional(annotation: Any) -> bool:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return is_union and type(None) in typing.get_args(annotation)


def _default(key: Key) -> str:
    if key.default == REQUIRED:
        return "required"
    text = yaml.safe_dump(to_plain(key.default), default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
