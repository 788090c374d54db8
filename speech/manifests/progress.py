"""A progress bar for long passes over files, shown only to someone who is watching."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")

SHOW_FROM = 2_000
"""Fewer items than this are done before a bar could be read."""

_BATCH = 10_000


def map_files(
    work: Callable[[Item], Result], items: Sequence[Item], description: str, show_from: int = SHOW_FROM
) -> list[Result]:
    """`work` on every item, in threads (libsndfile and soxr release the GIL), results in the items' order.

    The first exception stops the pass: items not yet begun are dropped.
    """
    threads = min(32, 4 * (os.cpu_count() or 1))
    done: list[Result] = []
    with (
        progress_bar(description, len(items), show_from) as advance,
        ThreadPoolExecutor(max_workers=threads, thread_name_prefix="files") as pool,
    ):
        try:
            # Batch by batch: what waits in a pool takes far more memory than its result.
            for start in range(0, len(items), _BATCH):
                for result in pool.map(work, items[start : start + _BATCH]):
                    done.append(result)
                    advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


@contextmanager
def progress_bar(description: str, total: int | None, show_from: int = SHOW_FROM) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, gone when the block ends; the function that is given advances it, from any thread.

    Args:
        total: number of items; None shows how many are done, once they are `show_from`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty() and (total is None or total >= show_from)
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task(description, total=total, visible=total is not None)

        def advance(items: int) -> None:
            bar.update(task, advance=items, visible=True)

        yield advance
