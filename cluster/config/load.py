"""Reading and printing the configuration of a run: YAML and dotted overrides in, a checked `RunConfig` out.

Paths are relative to the current working directory, wherever the YAML file lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.config.checks import across_sections, settle_unread_keys
from cluster.config.elsewhere import ELSEWHERE
from cluster.config.keys import REQUIRED, defaults, nearest, to_plain, walk
from cluster.config.schema import RunConfig
from cluster.config.source import read_source
from speech.errors import InputError, Problem
from speech.runtime.schema import Problems, bind


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    also: Callable[[RunConfig], Problems] = lambda config: [],
) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: YAML file, or None to build on the defaults alone. Its `defaults: base.yaml` key names a file, relative
            to itself, whose values it builds upon.
        overrides: `key=value` pairs with dotted keys and values in YAML syntax; the last one wins.
        also: finds further problems, such as those of the machine that the run is to start on, so that one message
            says them all.

    Raises:
        UserError: the file is missing or is not YAML.
        InputError: keys are unknown or missing, values of the wrong type, or out of range. Names them all, with file
            and line.
    """
    problems: list[Problem] = []
    known = defaults(RunConfig)
    source = read_source(path, overrides, known, problems)
    config: RunConfig | None = None
    if not problems:
        problems += settle_unread_keys(source, known)
        config, found = bind(RunConfig, _given(source.values), _did_you_mean, source.raw)
        if config is not None and not problems:
            found = [*across_sections(config), *also(config)]
        problems += [
            Problem("environment", None, key, text) if key.isupper() else source.problem(key, text)
            for key, text in found
        ]
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


def _did_you_mean(path: str) -> str:
    elsewhere = ELSEWHERE.get(path.rpartition(".")[2])
    if elsewhere is not None:
        return f"; here it is `{elsewhere}`"
    guess = nearest(path, [key.path for key in walk(RunConfig)])
    return f"; did you mean `{guess}`?" if guess else ""


def _given(values: Any) -> Any:
    """The values without those that nobody gave."""
    if isinstance(values, dict):
        return {key: _given(value) for key, value in values.items() if value != REQUIRED}
    return [_given(value) for value in values] if isinstance(values, list) else values


def _to_yaml(plain: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
    return text
