"""Reading and printing the configuration of a run: YAML and dotted overrides in, a checked `RunConfig` out.

Paths are relative to the current working directory, wherever the YAML file lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.config.binding import bind, defaults, to_plain
from cluster.config.checks import across_sections
from cluster.config.schema import RunConfig
from cluster.config.source import read_source
from speech.errors import InputError, Problem


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: YAML file, or None to build on the defaults alone. Its `defaults: base.yaml` key names a file, relative
            to itself, whose values it builds upon.
        overrides: `key=value` pairs with dotted keys and values in YAML syntax; the last one wins.

    Raises:
        UserError: the file is missing or is not YAML.
        InputError: keys are unknown or missing, values of the wrong type, or out of range. Names them all, with file
            and line.
    """
    problems: list[Problem] = []
    source = read_source(path, overrides, defaults(RunConfig), problems)
    config: RunConfig | None = None
    if not problems:
        config = bind(
            RunConfig, source.values, lambda key, text: problems.append(source.problem(key, text)), source.raw
        )
    if config is not None and not problems:
        problems.extend(source.problem(key, text) for key, text in across_sections(config))
    if problems or config is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"the configuration has {count}:", problems)
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal one."""
    return _to_yaml(to_plain(config))


def default_yaml() -> str:
    """All defaults as YAML, with `???` where a value is required."""
    return _to_yaml(defaults(RunConfig))


def _to_yaml(plain: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
    return text
