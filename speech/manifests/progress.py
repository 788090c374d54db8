"""A progress bar for long passes over files, shown only to someone who is watching."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")

SHOW_FROM = 2_000
"""Fewer items than this are done before a bar could be read."""


def map_files(
    work: Callable[[Item], Result], items: Sequence[Item], description: str, show_from: int = SHOW_FROM
) -> list[Result]:
    """`work` on every item, in threads (libsndfile and soxr release the GIL), results in the items' order.

    The first exception stops the pass: items not yet begun are dropped.
    """
    threads = min(32, 4 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="files") as pool:
        results = pool.map(work, items)
        try:
            return list(_shown(results, len(items), description, show_from))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _shown(results: Iterable[Result], total: int, description: str, show_from: int) -> Iterator[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    visible = total >= show_from and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not visible) as bar:
        yield from bar.track(results, total=total, description=description)
