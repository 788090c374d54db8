"""One value of a parquet file, without the rest of it in memory.

Parquet is read forwards: a value lies behind all earlier ones of its row group. So the last rows that were read are
kept for a while, and neighbours that are asked for in turn (headers of a whole manifest, a conversion) cost one pass.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from threading import Lock
from typing import Any

from speech.containers.location import Cell
from speech.errors import InputError, Problem
from speech.runtime.importing import import_extra

_BATCH_ROWS = 16
_KEPT_BYTES = 2**26
_KEPT_BATCHES = 8
_KEPT_GROUPS = 2


def open_parquet(path: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` that reads ahead by a megabyte only.

    Raises:
        InputError: it is not a parquet file, or one that breaks off.
        UserError: pyarrow is not installed.
    """
    arrow, parquet = (
        import_extra("data", name, "pyarrow", f"{path}: parquet") for name in ("pyarrow", "pyarrow.parquet")
    )
    try:
        return parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except (arrow.ArrowException, OSError) as error:
        raise _bad(path, f"cannot be read as parquet: {error}") from error


def read_cell(cell: Cell) -> bytes:
    """The value.

    Raises:
        InputError: the file is no parquet, has no such value, or holds nothing there.
        OSError: the file cannot be looked at.
        UserError: pyarrow is not installed.
    """
    changed = os.stat(cell.file).st_mtime_ns  # noqa: PTH116 - as for every other audio file
    key = (cell.file, changed, cell.column, cell.group)
    with _LOCK:
        group = _GROUPS.get(key)
        if group is None:
            group = _GROUPS[key] = _Group(cell)
            if len(_GROUPS) > _KEPT_GROUPS:
                _GROUPS.popitem(last=False)
        _GROUPS.move_to_end(key)
        try:
            return group.value(cell)
        except BaseException:
            _GROUPS.pop(key, None)
            raise


class _Group:
    """A column of a row group, read forwards."""

    def __init__(self, cell: Cell) -> None:
        self._file = open_parquet(cell.file)
        self._arrow = import_extra("data", "pyarrow", "pyarrow", cell.file)
        if cell.group >= self._file.num_row_groups:
            raise _bad(str(cell), f"has {self._file.num_row_groups} row groups")
        self._rows = self._file.metadata.row_group(cell.group).num_rows
        self._begin(cell)

    def _begin(self, cell: Cell) -> None:
        self._batches = self._file.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=[cell.group], columns=[cell.column], use_threads=False
        )
        self._kept: deque[tuple[int, Any]] = deque()
        self._end = 0

    def value(self, cell: Cell) -> bytes:
        if cell.row >= self._rows:
            raise _bad(str(cell), f"the row group has {self._rows} rows")
        if self._kept and cell.row < self._kept[0][0]:
            self._begin(cell)
        try:
            while cell.row >= self._end:
                self._advance(cell)
        except (self._arrow.ArrowException, OSError, StopIteration) as error:
            raise _bad(str(cell), f"cannot be read as parquet: {error}") from error
        for first, values in self._kept:
            if first <= cell.row < first + len(values):
                value = values[cell.row - first].as_py()
                if not isinstance(value, bytes):
                    raise _bad(str(cell), "holds no bytes")
                return value
        raise AssertionError("a row that was read is kept")

    def _advance(self, cell: Cell) -> None:
        batch = next(self._batches)
        if not batch.num_columns:
            raise _bad(str(cell), f"has no column {cell.column!r}")
        values = batch.column(0)
        for name in cell.column.split(".")[1:]:
            values = values.flatten()[values.type.get_field_index(name)]
        self._kept.append((self._end, values))
        self._end += len(values)
        while len(self._kept) > 1 and (
            len(self._kept) > _KEPT_BATCHES or sum(part.nbytes for _, part in self._kept) > _KEPT_BYTES
        ):
            self._kept.popleft()


_LOCK = Lock()
_GROUPS: OrderedDict[tuple[str, int, str, int], _Group] = OrderedDict()


def _bad(path: str, message: str) -> InputError:
    return InputError("cannot read audio", [Problem(path, None, None, message)])
