"""Reader for parquet files with sound inside, as data sets of Hugging Face are published and written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from speech.containers import Cell
from speech.containers.parquet import open_parquet
from speech.errors import InputError, Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids
from speech.manifests.foreign.tables import Columns, UnknownColumnsError, columns_of, entry_of
from speech.manifests.shards import shards
from speech.runtime.importing import import_extra

SUFFIX = ".parquet"
MAX_GROUP_BYTES = 2**29
"""Sound of a row group. In a larger one, to read one utterance would take about a second and as much memory."""

_BATCH_ROWS = 1_000
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")


def read_parquet(path: Path) -> Iterator[Entry | Problem]:
    """A file, the files of a folder in the order of their names, or those of a pattern with braces.

    A column `audio` holds bytes or a path, or both (`Audio(decode=False)`); bytes count first. Other columns are named
    as in `SYNONYMS`. The bytes themselves are not read. The line of a problem is the row in its file, counted from 1.
    """
    ids = Ids()
    files = shards(path, SUFFIX)
    splits = sorted({match[1] for file in files if (match := _SPLIT.fullmatch(file.name))})
    if path.is_dir() and len(splits) > 1:
        message = f"holds the splits {', '.join(splits)}; name the files of one"
        yield Problem(str(path), None, None, f"{message}, as in {splits[0]}-{{00000..00003}}-of-00004.parquet")
        return
    for file in files:
        try:
            parquet = open_parquet(str(file))
            columns = columns_of(parquet.schema_arrow, file)
        except InputError as error:
            yield from (Problem(str(file), None, None, problem.message) for problem in error.problems)
            continue
        except UnknownColumnsError as error:
            yield Problem(str(file), None, None, str(error))
            continue
        before = 0
        try:
            for group in range(parquet.num_row_groups):
                yield from _group(file, parquet, columns, group, before, ids)
                before += parquet.metadata.row_group(group).num_rows
        except (import_extra("data", "pyarrow", "pyarrow", str(file)).ArrowException, OSError) as error:
            yield Problem(str(file), before + 1, None, f"the row group that begins here cannot be read: {error}")


def _group(file: Path, parquet: Any, columns: Columns, group: int, before: int, ids: Ids) -> Iterator[Entry | Problem]:
    """The rows of a row group, so many rows being `before` it."""
    is_struct = columns.bytes not in ("", columns.audio)
    read = [*columns.names.values(), *([columns.path] if columns.path else ())]
    filled = _filled(parquet, columns, group)
    if isinstance(filled, str):
        yield Problem(str(file), before + 1, columns.audio, filled)
        return
    index = 0
    for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=read, use_threads=False):
        for values in batch.to_pylist():
            path = values.get(columns.audio)
            if is_struct:
                path = (path or {}).get("path")
            audio = str(Cell(file.name, columns.bytes, group, index)) if next(filled) else None
            index += 1
            yield entry_of(file, before + index, columns, values, audio, path, ids)


def _filled(parquet: Any, columns: Columns, group: int) -> Iterator[bool] | str:
    """Whether the rows of a row group hold bytes, one after another; or why it cannot be used."""
    if not columns.bytes:
        return repeat(False)
    of_group = parquet.metadata.row_group(group)
    for place in range(of_group.num_columns):
        chunk = of_group.column(place)
        if chunk.path_in_schema != columns.bytes:
            continue
        size = chunk.total_uncompressed_size
        if size > MAX_GROUP_BYTES:
            return (
                f"row group {group} holds {size / 2**30:.1f} GiB of sound, all of which may be read for one utterance; "
                "write smaller ones (`row_group_size=100`)"
            )
        nulls = chunk.statistics.null_count if chunk.statistics is not None else None
        if nulls in (0, of_group.num_rows):
            return repeat(not nulls)
    # Some have bytes and others a path.
    return _valid(parquet, columns, group)


def _valid(parquet: Any, columns: Columns, group: int) -> Iterator[bool]:
    for batch in parquet.iter_batches(batch_size=16, row_groups=[group], columns=[columns.bytes], use_threads=False):
        values = batch.column(0)
        yield from (values if columns.bytes == columns.audio else values.flatten()[0]).is_valid().to_pylist()
