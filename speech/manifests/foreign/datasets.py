"""Reader for folders of Hugging Face's `Dataset.save_to_disk`: streams of Arrow, in which sound lies as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speech.containers import Span
from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids
from speech.manifests.foreign.tables import Columns, UnknownColumnsError, columns_of, entry_of
from speech.runtime.importing import import_extra

STATE = "state.json"
SPLITS = "dataset_dict.json"


def data_files(folder: Path) -> list[Path]:
    """The files of a data set, the state that names the others being the first."""
    return [folder / STATE, *sorted(folder.glob("*.arrow"))]


def _in_order(folder: Path) -> list[Path]:
    """The files that hold rows.

    Raises:
        ValueError: the state is not one of `save_to_disk`, or the rows are a selection; says so.
    """
    try:
        state = json.loads((folder / STATE).read_bytes())
        names = [Path(item["filename"]).name for item in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"is no state of `save_to_disk`: {error!r}") from error
    if state.get("_indices_data_files"):
        raise ValueError("keeps a selection of the rows beside them; call `flatten_indices()` and save it again")
    return [folder / name for name in names]


def read_datasets(path: Path) -> Iterator[Entry | Problem]:
    """A column `audio` holds bytes or a path, or both (`Audio`); bytes count first. Other columns are named as in
    `SYNONYMS`. The bytes themselves are not read. The line of a problem is the row in its file, counted from 1.
    """
    arrow = import_extra("data", "pyarrow", "pyarrow", f"{path}: a saved data set")
    ids = Ids()
    try:
        files = _in_order(path)
    except ValueError as error:
        yield Problem(str(path / STATE), None, None, str(error))
        return
    for file in files:
        row = 0
        try:
            with arrow.memory_map(str(file)) as source:
                whole = source.read_buffer()
                stream = arrow.ipc.open_stream(whole)
                columns = columns_of(stream.schema, file)
                for batch in stream:
                    yield from _batch(file, batch, columns, row, ids, whole)
                    row += batch.num_rows
        except UnknownColumnsError as error:
            yield Problem(str(file), None, None, str(error))
        except (arrow.ArrowException, OSError) as error:
            yield Problem(str(file), row + 1 if row else None, None, f"cannot be read as a stream of Arrow: {error}")


def _batch(file: Path, batch: Any, columns: Columns, before: int, ids: Ids, whole: Any) -> Iterator[Entry | Problem]:
    """The rows of a batch, so many rows being `before` it; `whole` is the buffer of the file."""
    sound = batch.column(columns.audio)
    fields = {columns.audio: sound}
    if columns.bytes not in ("", columns.audio):
        fields = {f"{columns.audio}.{f.name}": part for f, part in zip(sound.type, sound.flatten(), strict=True)}
    paths = fields[columns.path].to_pylist() if columns.path else [None] * batch.num_rows
    spans = _spans(fields[columns.bytes], whole) if columns.bytes else [None] * batch.num_rows
    rows = batch.select(list(columns.names.values())).to_pylist()
    for index, (values, path, span) in enumerate(zip(rows, paths, spans, strict=True), start=1):
        if span is not None and span[0] < 0:
            message = "is compressed in its file; save the data set again without compression"
            yield Problem(str(file), before + index, columns.audio, message)
            continue
        audio = None if span is None else str(Span(file.name, *span, member=Path(path or "").name))
        yield entry_of(file, before + index, columns, values, audio, path, ids)


def _spans(values: Any, whole: Any) -> list[tuple[int, int] | None]:
    """(offset in the file, size) of each value, None where there is none; a negative offset where it is not in it."""
    _, ends, data = values.buffers()
    if data is None:
        return [None] * len(values)
    width = np.int64 if str(values.type).startswith("large") else np.int32
    bounds = np.frombuffer(ends, width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    inside = whole.address <= data.address and data.address + data.size <= whole.address + whole.size
    first = data.address - whole.address if inside else -(2**62)
    spans = zip((bounds[:-1] + first).tolist(), np.diff(bounds).tolist(), strict=True)
    return [span if valid else None for span, valid in zip(spans, values.is_valid().to_pylist(), strict=True)]
