"""The Dockerfile, read as a builder reads it, and what it does that can be checked without one.

The image itself is not built here: that needs a builder and a registry with the base.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cluster import cli
from tests.deploy.locks import DEVICES, ROOT, lock

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class Instruction(NamedTuple):
    name: str
    text: str


def stages() -> list[list[Instruction]]:
    """Instructions of each stage, continued lines joined; what stands before the first FROM goes with it."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    found: list[list[Instruction]] = [[]]
    for line in filter(None, map(str.strip, lines)):
        name, _, rest = line.partition(" ")
        if name == "FROM" and any(one.name == "FROM" for one in found[-1]):
            found.append([])
        found[-1].append(Instruction(name, " ".join(rest.split())))
    return found


def texts(stage: list[Instruction], name: str) -> list[str]:
    return [one.text for one in stage if one.name == name]


def test_it_has_a_stage_that_builds_and_one_that_runs() -> None:
    build, final = stages()
    assert {one.name for stage in (build, final) for one in stage} <= {
        *("ARG", "FROM", "SHELL", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD")
    }
    assert texts(build, "FROM") == ["${BASE} AS build"] and texts(final, "FROM") == ["${BASE}"]
    defaults = dict(text.split("=") for text in texts(build, "ARG") if "=" in text)
    image, _, tag = defaults["BASE"].partition(":")
    assert image == "python" and re.fullmatch(r"3\.\d+-slim-\w+", tag), "pinned by a tag with version and distribution"
    assert tag.split("-")[0] == "3.11", "with which the locks were tested"
    assert defaults["DEVICE"] in DEVICES


def test_what_it_copies_exists_and_passes_the_ignore_file() -> None:
    build, final = stages()
    sources = [source for text in texts(build, "COPY") for source in text.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*", "nothing travels unless it is named"
    assert {pattern[1:] for pattern in patterns if pattern[0] == "!"} == set(sources)
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {path.name for path in ROOT.iterdir() if path.is_dir() and any(fnmatch(path.name, p) for p in found)}
    assert {name for name in packages if not name.endswith(".egg-info")} <= set(sources)
    assert texts(final, "COPY") == ["--from=build /opt/speechrl /opt/speechrl"]


@pytest.mark.parametrize("device", DEVICES)
def test_the_commands_that_it_runs_are_those_of_the_makefile(device: str, tmp_path: Path) -> None:
    build, _ = stages()
    (command,) = re.findall(r"make environment .*", " ".join(texts(build, "RUN")).split(" /opt")[0])
    words = shlex.split(command.replace("${DEVICE}", device).replace("VENV=/opt/speechrl", f"VENV={tmp_path}/venv"))
    copied = [text.split() for text in texts(build, "COPY")[:2]]
    assert [words[:-1] for words in copied] == [["Makefile"], ["requirements"]], "all that the layer depends on"
    (tmp_path / "requirements").symlink_to(ROOT / "requirements")
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    done = subprocess.run(
        [*words[:1], "--dry-run", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f"pip install --quiet --no-deps -r requirements/{device}.lock" in done.stdout
    assert "pip install --quiet --no-deps --no-build-isolation -e" not in done.stdout, "speechrl comes in a later layer"
    assert texts(build, "RUN")[-1].startswith("/opt/speechrl/bin/pip install") and texts(build, "RUN")[-1].endswith(
        " ."
    )


def test_it_ends_as_a_user_with_a_command_of_ours() -> None:
    build, final = stages()
    (user,) = texts(final, "USER")
    assert user.isdecimal() and int(user) > 0, "a number, which Kubernetes can compare with 0"
    setup = " ".join(texts(final, "RUN"))
    assert f"useradd --create-home --uid {user} " in setup
    order = [one.name for one in final]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name in ("RUN", "COPY"))
    command = yaml.safe_load(texts(final, "CMD")[0])
    assert command[0] in PROJECT["project"]["scripts"]
    assert cli._parsers(command[1:])[0].parse_args(command[1:]).command == "doctor"
    assert texts(final, "ENV") == ["PATH=/opt/speechrl/bin:$PATH"] and "/etc/profile.d/" in setup, "login shells, too"
    for package in ("espeak-ng", "libnuma1", "g++", "wget"):
        assert f" {package} " in setup
    for stage in (build, final):
        for command in texts(stage, "RUN"):
            assert "apt-get install" not in command or (
                "apt-get update &&" in command
                and "--no-install-recommends" in command
                and "rm -rf /var/lib/apt" in command
            )


def test_it_holds_no_secret_and_no_release_of_its_own() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"(?i)(token|secret|api_?key|passwd)|://", text)
    assert not re.search(r"[=><]=\s*\d", text), "releases stand in the locks"


def test_manifests_name_the_image_of_this_version() -> None:
    version = PROJECT["project"]["version"]
    for file in (ROOT / "deploy" / "kuberay").glob("ray*.yaml"):
        images = re.findall(r"image: (?:&image )?([^*\s]+)", file.read_text(encoding="utf-8"))
        assert images == [f"registry.example/speechrl:{version}"]
        (user,) = texts(stages()[-1], "USER")
        pods = [node for node in _walk(yaml.safe_load(file.read_text(encoding="utf-8"))) if "containers" in node]
        assert len(pods) == 4
        assert all(pod["securityContext"] == {"runAsNonRoot": True, "fsGroup": int(user)} for pod in pods)
        assert f"rayVersion: {lock('gpu')['ray']}" in file.read_text(encoding="utf-8")


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(child)
