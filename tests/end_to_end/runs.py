"""Running the real command on a tiny model and a few embedded utterances."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "cluster.cli"]


def manifest(folder: Path, utterances: int, split: str = "train") -> Path:
    """The longest utterances of an embedded split (the prefix cache works in blocks of 32 positions), with absolute
    audio paths."""
    source = ROOT / "assets" / "speech" / f"{split}.jsonl"
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    lines = sorted(lines, key=lambda line: -line["duration"])[:utterances]
    for line in lines:
        line["audio"] = str(source.parent / line["audio"])
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def write_config(folder: Path, model: Path, **overrides: Any) -> Path:
    """A configuration small enough for a test, but with every part of the system in it."""
    config = {
        "name": "tiny",
        "steps": 6,
        "seed": 3,
        "runs_dir": str(folder / "runs"),
        "model": {"path": str(model)},
        "data": {
            "train": str(manifest(folder, 10)),
            "test": str(manifest(folder, 4, "test")),
            "batch_prompts": 4,
            "replay": str(manifest(folder, 6, "valid")),
            "replay_weight": 0.1,
            "replay_batch": 2,
        },
        "sampling": {"group_size": 3, "temperature": 0.9, "max_new_tokens": 10, "min_new_tokens": 1},
        "engines": {"threads": 1, "max_model_len": 160, "max_num_seqs": 16, "kv_cache_gb": 0.1},
        "encoder": {"threads": 1},
        "rewards": {
            "items": [
                {"name": "accuracy", "options": {"unit": "character"}},
                {"name": "hallucination", "weight": 0.3},
                {"name": "no_stop", "weight": 0.5},
            ]
        },
        "learner": {
            "threads": 1,
            "lr": 0.002,
            "loss": {"kl_coef": 0.01, "importance_cap": 2.0},
            "zero_variance": "resample",
        },
        "checkpoint": {"every": 2},
    }
    for key, value in overrides.items():
        section = config
        *path, last = key.split("__")
        for name in path:
            section = section[name]  # type: ignore[assignment]
        section[last] = value
    path_ = folder / "config.yaml"
    path_.write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML
    return path_


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@contextmanager
def training(config: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`speechrl train` in progress; what it prints is added to `output.txt` beside the configuration."""
    with config.with_name("output.txt").open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*COMMAND, "train", str(config)],
            cwd=ROOT,
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(*arguments: str, expect: int = 0, timeout: float = 300) -> str:
    """Run a command to its end; returns what it printed."""
    process = start(*arguments)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{arguments} did not end within {timeout} s:\n{output}") from None
    assert process.returncode == expect, f"exit code {process.returncode}:\n{output}"
    return output


def wait_for_steps(process: subprocess.Popen[str], metrics: Path, steps: int, timeout: float = 300) -> None:
    """Wait until a run has recorded so many steps."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) >= steps:
            return
        if process.poll() is not None:
            raise AssertionError(f"ended before step {steps}:\n{process.stdout.read() if process.stdout else ''}")
        time.sleep(0.05)
    raise AssertionError(f"no step {steps} within {timeout} s")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
