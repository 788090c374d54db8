"""Opening a file, or a place inside one, as a stream of bytes. Nothing is unpacked to the disk."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

from speech.containers.location import Cell, Span, locate
from speech.errors import InputError, Problem

_BUFFER = 2**16
"""Bytes read ahead: a header takes one read of the file, whatever lies behind it."""


def open_bytes(path: str) -> BinaryIO:
    """A seekable stream of what lies at a path, be it a file or a place inside one.

    Raises:
        InputError: the place is not inside the file.
        OSError: the file cannot be read.
        UserError: a package that reads the file is not installed.
    """
    place = locate(path)
    if isinstance(place, Span):
        return io.BufferedReader(_SpanReader(Path(place.file).open("rb", buffering=0), place), _BUFFER)
    if isinstance(place, Cell):
        from speech.containers.parquet import read_cell

        return io.BytesIO(read_cell(place))
    return Path(path).open("rb")


class _SpanReader(io.RawIOBase):
    """A span of a file as if it were all of one."""

    def __init__(self, file: io.FileIO, span: Span) -> None:
        self._file, self._start, self._size, self._position = file, span.offset, span.size, 0
        found = os.fstat(file.fileno()).st_size
        if span.offset + span.size > found:
            self.close()
            message = f"breaks off: {span.file} has {found} bytes, and it ends at {span.offset + span.size}"
            raise InputError("cannot read audio", [Problem(str(span), None, None, message)])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        data = os.pread(self._file.fileno(), wanted, self._start + self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
