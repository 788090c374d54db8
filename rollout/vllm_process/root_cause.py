"""Why an engine does not start. vLLM's processes say it on stderr, and their parent only that they ended."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from rollout.errors import EngineLostError
from speech.errors import UserError, last_line

_ERROR = re.compile(r"(?:\([^()]*\) )?(?:[\w.]+\.)?(\w*(?:Error|Exception)): (\S.*)")
"""The last line of a traceback, behind the prefix that vLLM gives the lines of its processes."""
_NAMELESS = "See root cause above"
KEYS = {
    "max_model_len": "engines.max_model_len",
    "max model len": "engines.max_model_len",
    "max seq len": "engines.max_model_len",
    "max_num_batched_tokens": "engines.max_num_batched_tokens",
    "max_num_seqs": "engines.max_num_seqs",
    "gpu_memory_utilization": "engines.gpu_memory_utilization",
    "gpu memory utilization": "engines.gpu_memory_utilization",
    "out of memory": "engines.gpu_memory_utilization",
    "kv cache": "engines.kv_cache_gb",
    "kv_cache_memory": "engines.kv_cache_gb",
    "tensor_parallel": "engines.gpus_per_engine",
    "tensor parallel": "engines.gpus_per_engine",
    "cuda": "engines.gpus_per_engine",
}
"""What vLLM's messages mention → our key; the first that occurs counts."""


@contextmanager
def causes_named() -> Iterator[None]:
    """Raise what vLLM raises at its start with its cause, in a line.

    Raises:
        UserError: vLLM refuses the settings, and would do so again.
        EngineLostError: one of its processes ended.
    """
    begin = os.fstat(2).st_size
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"the engine cannot start so: {_described(last_error(str(error)) or last_line(error))}"
        ) from error
    except RuntimeError as error:
        cause = last_error(_written_since(begin)) if _NAMELESS in str(error) else None
        raise EngineLostError(_described(cause or last_line(error))) from error


def last_error(text: str) -> str | None:
    """The last line of a text that says what was raised, without those that only point to others."""
    found = [match[0][match.start(1) - match.start() :] for match in map(_ERROR.match, text.splitlines()) if match]
    return next((line for line in reversed(found) if _NAMELESS not in line), None)


def _written_since(begin: int) -> str:
    """What this process and its children wrote to stderr since then; nothing where that is no file but a terminal."""
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return ""
    with open("/proc/self/fd/2", "rb") as file:  # noqa: PTH123 - a link of the kernel's, not a path
        file.seek(begin)
        return file.read().decode("utf-8", "replace")


def _described(cause: str) -> str:
    lower = cause.lower()
    key = next((key for word, key in KEYS.items() if word in lower), None)
    return cause if key is None else f"{key}: {cause}"
