"""A place inside a file, written behind its path (`shard.tar#member=u1.wav&offset=512&size=32044`).

Such a path goes wherever the path of an audio file goes: through manifests, indexes and records to the actor that
decodes it. It holds no slash behind the `#`, so that the folder of the file is still what stands before the last one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_SPAN = re.compile(
    r"(?P<file>.*[^/])#(?:member=(?P<member>[^#&/]*)&)?offset=(?P<offset>\d+)&size=(?P<size>\d+)", re.DOTALL
)
_CELL = re.compile(r"(?P<file>.*[^/])#column=(?P<column>[^#&/]+)&group=(?P<group>\d+)&row=(?P<row>\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [offset, offset + size) of a file, as of a member of a tar; `member` is its name, for a reader's eye."""

    file: str
    offset: int
    size: int
    member: str = ""

    def __str__(self) -> str:
        member = f"member={quote(self.member, safe='')}&" if self.member else ""
        return f"{self.file}#{member}offset={self.offset}&size={self.size}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of a parquet file.

    Attributes:
        column: name in the schema; `audio.bytes` is the field of a struct.
        group: row group, counted from 0.
        row: row in its group, counted from 0.
    """

    file: str
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}#column={quote(self.column, safe='')}&group={self.group}&row={self.row}"


def locate(path: str) -> Span | Cell | None:
    """The place that a path names, or None for a file of its own."""
    if "#" not in path:
        return None
    if match := _SPAN.fullmatch(path):
        return Span(match["file"], int(match["offset"]), int(match["size"]), unquote(match["member"] or ""))
    if match := _CELL.fullmatch(path):
        return Cell(match["file"], unquote(match["column"]), int(match["group"]), int(match["row"]))
    return None


def container_of(path: str) -> str:
    """The path of the file on the disk: what can be looked at for existence, size and time of change."""
    place = locate(path)
    return path if place is None else place.file
