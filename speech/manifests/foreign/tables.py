"""What parquet files and saved data sets of Hugging Face share: columns, one of which holds the sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids, names_in, values_of
from speech.runtime.importing import import_extra

_AUDIO = "audio"
_FIELDS = ("bytes", "path")


class UnknownColumnsError(Exception):
    """The columns of a table are not those of utterances; says why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        audio: the column of the sound.
        bytes: where its bytes are, a field being written as `audio.bytes`; empty where there are only paths.
        path: where its path is, likewise; empty where there are only bytes.
        names: column by key of ours, of the others.
        shown: the same with that of the sound, for messages.
    """

    audio: str
    bytes: str
    path: str
    names: Mapping[str, str]
    shown: Mapping[str, str]


def columns_of(schema: Any, file: Path) -> Columns:
    """The columns of an Arrow schema.

    Raises:
        UnknownColumnsError: there is no column with sound, or none with text, or the sound is in another form.
        UserError: pyarrow is not installed.
    """
    types = import_extra("data", "pyarrow.types", "pyarrow", str(file))
    structs = [f.name for f in schema if types.is_struct(f.type) and set(_FIELDS) <= {part.name for part in f.type}]
    audio = _AUDIO if _AUDIO in schema.names else structs[0] if len(structs) == 1 else None
    columns = ", ".join(schema.names)
    if audio is None:
        raise UnknownColumnsError(f"has no column {_AUDIO!r}, but {columns}")
    kind = schema.field(audio).type
    if audio in structs:
        bytes_in, path_in = (f"{audio}.{name}" for name in _FIELDS)
    elif types.is_binary(kind) or types.is_large_binary(kind):
        bytes_in, path_in = audio, ""
    elif types.is_string(kind) or types.is_large_string(kind):
        bytes_in, path_in = "", audio
    else:
        raise UnknownColumnsError(f"{audio}: is {kind}; expected bytes and path, as of `Audio(decode=False)`")
    names = names_in(name for name in schema.names if name != audio)
    if "text" not in names:
        raise UnknownColumnsError(f"has no column with the text, but {columns}")
    return Columns(audio, bytes_in, path_in, names, {**names, "audio": audio})


def entry_of(file: Path, row: int, columns: Columns, values: Mapping[str, Any], audio: str | None, path: str | None,
             ids: Ids) -> Entry:  # fmt: skip
    """A row of a table.

    Args:
        row: counted from 1 in its file.
        values: of the row, by column.
        audio: where the sound is, relative to the folder of the file; None where that is the path, or nowhere.
        path: of the sound: where it is, or once was.
    """
    fields = values_of(values, columns.names)
    name = fields.get("id")
    if not isinstance(name, str) or not name:
        name = Path(path).name if path else f"{file.stem}-{row}"
    fields["id"] = ids.of(name, row)
    if (audio or path) is not None:
        fields["audio"] = audio or path
    return Entry(str(file), row, file.parent, fields, columns.shown)
