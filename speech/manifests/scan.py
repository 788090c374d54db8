"""Reading a manifest from its first line to its last; a long one of our own format in several processes.

Each process is a fresh interpreter (`python -m speech.manifests.scan`) that reads a span of the file and writes what
`Utterances.to_bytes` makes of it to its standard output. Processes of `multiprocessing` would import the user's main
module again, or be forked from a process with threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from speech.errors import Problem
from speech.manifests.entries import Entry, check_entry
from speech.manifests.formats import FORMATS
from speech.manifests.jsonl import Span, is_gzip, read_own
from speech.manifests.progress import progress_bar
from speech.manifests.store import StoreWriter, Utterances, joined, read_store
from speech.records import Utterance

SPAN_BYTES = 2**24
"""A process more is worth its start, half a second, for at least this much of a manifest: some 80,000 lines."""

_MAX_PROCESSES = 16
_REPORT_LINES = 2_000


@dataclass(frozen=True, slots=True)
class Scan:
    """What stands in a manifest. Audio files have not been looked at.

    Attributes:
        utterances: all lines that are usable by themselves, in order; an id may occur twice.
        problems: what is wrong with the others.
        files: (name, lines before it) of the files in which the lines of `utterances` are counted, in order. The name
            is empty for a single file, and below its folder otherwise. Lines count on from file to file.
        names: how the format at hand calls a key, for messages.
    """

    utterances: Utterances
    problems: tuple[Problem, ...]
    files: tuple[tuple[str, int], ...]
    names: dict[str, str]

    def to_bytes(self, path: Path, header: dict[str, Any]) -> bytes:
        """As bytes, with further values for the header. The manifest may have another name when they are read."""
        problems = [(_below(path, problem.file), *astuple(problem)[1:]) for problem in self.problems]
        own = {"problems": problems, "files": self.files, "names": self.names}
        return self.utterances.to_bytes(header | own)


def read_scan(file: IO[bytes], path: Path) -> tuple[Scan, dict[str, Any]]:
    """What `Scan.to_bytes` wrote, and its header.

    Raises:
        DamagedStoreError: the bytes are not what was written.
        OSError: the file cannot be read.
    """
    utterances, header = read_store(file, str(folder_of(path)))
    problems = tuple(Problem(file_at(path, file), *rest) for file, *rest in header["problems"])
    files = tuple((name, before) for name, before in header.get("files", ()))  # an earlier release has none
    return Scan(utterances, problems, files, header["names"]), header


def folder_of(path: Path) -> Path:
    """Absolute folder of a manifest; a directory is its own."""
    return path.absolute() if path.is_dir() else path.parent.absolute()


def scan(path: Path, format: str, require_text: bool) -> Scan:
    """Read and check every line.

    Args:
        format: a key of `FORMATS`.
        require_text: whether a line without a transcript is bad.
    """
    spans = _spans(path) if format == "jsonl" else []
    if len(spans) > 1:
        return _in_processes(path, spans, require_text)
    with progress_bar(f"reading {path.name}", None) as advance:
        return _gather(FORMATS[format].read(path), path, require_text, advance)


def _gather(items: Iterable[Entry | Problem], path: Path, require_text: bool, advance: Callable[[int], None]) -> Scan:
    writer = StoreWriter(str(folder_of(path)))
    problems: list[Problem] = []
    files: list[tuple[str, int]] = []
    names: Mapping[str, str] | None = None
    file, before, line = "", 0, 0
    for number, item in enumerate(items, start=1):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        checked = check_entry(item, require_text)
        if isinstance(checked, Utterance):
            if item.file != file:
                file, before = item.file, line
                files.append((_below(path, file), before))
            line = before + item.line
            writer.add(checked, line)
            names = item.names if names is None or item.names is names or item.names == names else {}
        else:
            problems.extend(checked)
        if number % _REPORT_LINES == 0:
            advance(_REPORT_LINES)
    return Scan(writer.finish(), tuple(problems), tuple(files or [("", 0)]), dict(names or {}))


def _spans(path: Path) -> list[Span]:
    """The file in parts of equal size for the processors that we may use; one when it is too short for more."""
    if is_gzip(path):
        return [Span(0, sys.maxsize)]
    size = path.stat().st_size
    count = min(len(os.sched_getaffinity(0)), _MAX_PROCESSES, size // SPAN_BYTES)
    ends = []
    with path.open("rb") as file:
        for number in range(1, count):
            file.seek(size * number // count)
            file.readline()
            ends.append(file.tell())
    # With lines longer than a span two of the ends are one.
    bounds = sorted({0, *ends, size})
    return [Span(start, end) for start, end in pairwise(bounds)]


def _in_processes(path: Path, spans: list[Span], require_text: bool) -> Scan:
    problems: list[Problem] = []
    utterances: list[Utterances] = []
    processes: list[subprocess.Popen[str]] = []
    before = 0
    with (
        progress_bar(f"reading {path.name}", None) as advance,
        ThreadPoolExecutor(len(spans)) as pool,
        ExitStack() as outputs,
    ):
        files = [outputs.enter_context(tempfile.TemporaryFile()) for _ in spans]
        try:
            for span, file in zip(spans, files, strict=True):
                processes.append(_start(path, span, require_text, file))
            failures = [failure for failure in pool.map(partial(_follow, advance), processes) if failure]
        finally:
            for process in processes:
                process.kill()  # nothing, when it has ended; after Ctrl-C it has not
        if failures:
            raise RuntimeError(f"{path}: a process that reads it has failed: {failures[0]}")
        for output in files:
            output.seek(0)
            part, header = read_scan(output, path)
            problems += (replace(p, line=None if p.line is None else p.line + before) for p in part.problems)
            columns = part.utterances.columns
            utterances.append(Utterances(replace(columns, lines=columns.lines + before), part.utterances.folder))
            before += header["lines"]
    return Scan(joined(utterances, str(folder_of(path))), tuple(problems), (("", 0),), part.names)


def _start(path: Path, span: Span, require_text: bool, output: IO[bytes]) -> subprocess.Popen[str]:
    """A process that reads a span."""
    return subprocess.Popen(
        # -P: a folder `speech` in the working directory is not ours.
        [sys.executable, "-P", "-m", __name__, str(path), str(span.start), str(span.end), str(int(require_text))],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )


def _follow(advance: Callable[[int], None], process: subprocess.Popen[str]) -> str:
    """Wait until a process ends, and show its progress; what went wrong, or nothing."""
    assert process.stderr is not None
    said = []
    with process.stderr:
        for line in process.stderr:
            if line.strip().isdigit():
                advance(int(line))
            else:
                said.append(line)
    code = process.wait()
    return f"code {code}:\n{''.join(said)}" if code else ""


def _below(path: Path, file: str) -> str:
    """A file of a manifest relative to its folder: empty for the manifest itself."""
    return "" if file == str(path) else str(Path(file).relative_to(_inside(path)))


def file_at(path: Path, below: str) -> str:
    """The opposite of `_below`."""
    return str(_inside(path) / below) if below else str(path)


def _inside(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _main(arguments: list[str], output: IO[bytes], report: IO[str]) -> None:
    path, span = Path(arguments[0]), Span(int(arguments[1]), int(arguments[2]))

    def advance(lines: int) -> None:
        report.write(f"{lines}\n")
        report.flush()

    found = _gather(read_own(path, span), path, bool(int(arguments[3])), advance)
    with path.open("rb") as file:
        file.seek(span.start)
        lines = sum(block.count(b"\n") for block in _blocks(file, span.end - span.start))
    output.write(found.to_bytes(path, {"lines": lines}))


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size and (block := file.read(min(size, 2**20))):
        size -= len(block)
        yield block


if __name__ == "__main__":
    try:
        _main(sys.argv[1:], sys.stdout.buffer, sys.stderr)
    except KeyboardInterrupt:  # the parent says it
        sys.exit(130)
