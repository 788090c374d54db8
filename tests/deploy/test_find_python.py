"""`make setup` finds a Python that works, whatever the distribution calls it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "requirements" / "find_python.sh"

WORKS, NO_VENV, BROKEN = "works", "no venv", "broken"


def stand_in(folder: Path, name: str, version: str, state: str = WORKS) -> None:
    """An interpreter that answers as one of a version does; `broken` is a shim of pyenv's."""
    answers = {
        WORKS: f'case "$2" in *version*) echo {version};; esac',
        NO_VENV: f'case "$2" in *version*) echo {version};; *) exit 1;; esac',
        BROKEN: "echo 'pyenv: command not found' >&2; exit 127",
    }
    file = folder / name
    file.write_text(f"#!/bin/sh\n{answers[state]}\n")
    file.chmod(0o755)


def find(path: Path) -> subprocess.CompletedProcess[str]:
    (path / "cat").symlink_to("/bin/cat")
    return subprocess.run(
        ["/bin/sh", str(SCRIPT)], env={"PATH": str(path)}, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"python3.11": "3.11", "python3": "3.13"}, "python3.11"),
        ({"python3": "3.12", "python3.12": "3.12"}, "python3.12"),  # Ubuntu 24.04
        ({"python3": "3.13"}, "python3"),  # Debian 13, when only the default is there
        ({"python3": "3.10", "python": "3.12"}, "python"),
        ({"python3.11": (BROKEN, "3.11"), "python3.12": "3.12"}, "python3.12"),
        ({"python3.12": (NO_VENV, "3.12"), "python3.13": "3.13"}, "python3.13"),
    ],
)
def test_the_first_that_works(tmp_path: Path, there: dict[str, str | tuple[str, str]], expected: str) -> None:
    for name, what in there.items():
        state, version = what if isinstance(what, tuple) else (WORKS, what)
        stand_in(tmp_path, name, version, state)
    done = find(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / expected))


def test_without_one_it_says_what_to_install(tmp_path: Path) -> None:
    stand_in(tmp_path, "python3", "3.12", NO_VENV)
    stand_in(tmp_path, "python", "3.14")
    done = find(tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert "python3 (3.12) lacks venv: apt install python3.12-venv" in done.stderr and "python is 3.14" in done.stderr
    assert "sudo apt install python3 python3-venv" in done.stderr and "PYTHON=/path/to" in done.stderr


def test_a_real_interpreter(tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(Path(sys.executable).resolve())
    assert find(tmp_path).stdout.strip() == str(tmp_path / "python3")


def make_setup(folder: Path, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real recipe in a copy of what it reads."""
    (folder / "requirements").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements/find_python.sh", "requirements/cpu.lock"):
        (folder / name).write_text((ROOT / name).read_text())
    command = [str(shutil.which("make")), "setup", *arguments]
    return subprocess.run(
        command, cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )


def test_make_takes_the_interpreter_that_is_named(tmp_path: Path) -> None:
    note, other = tmp_path / "note", tmp_path / "other"
    other.write_text(f'#!/bin/sh\necho "$@" > {note}\nexit 3\n')
    other.chmod(0o755)
    done = make_setup(tmp_path, "/usr/bin:/bin", f"PYTHON={other}")
    assert done.returncode != 0 and note.read_text() == "-m venv .venv\n"


def test_make_stops_where_there_is_none(tmp_path: Path) -> None:
    nothing = tmp_path / "bin"
    nothing.mkdir()
    for tool in ("sh", "cat"):
        (nothing / tool).symlink_to(str(shutil.which(tool)))
    done = make_setup(tmp_path, str(nothing))
    assert done.returncode != 0 and "No usable Python 3.11, 3.12 or 3.13 found." in done.stderr
    assert not (tmp_path / ".venv").exists()
