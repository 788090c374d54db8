"""What one call costs: seconds, and memory at its peak, on a CPU or a GPU. The benchmarks here share it."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, `--dtype` and `--threads`."""
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to compute")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the policy: on a GPU it is bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")


def hardware(args: argparse.Namespace) -> str:
    """What it runs on, for the table's heading."""
    import torch

    where = f"{args.threads} thread(s), {platform.machine()}"
    if args.device == "cuda":
        where = torch.cuda.get_device_name()
    return f"{args.dtype}; {where}, torch {torch.__version__}"


def seconds(run: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    """Seconds of one call by `clock`; a GPU is waited for on both sides."""
    _wait(device)
    start = clock()
    run()
    _wait(device)
    return clock() - start


def peak_growth(run: Callable[[], object], device: str) -> float:
    """Megabytes by which memory grows during one call, above what was held before it.

    On a CPU the process's peak resident size (Linux only): measure each form in a process of its own, after a small
    call that loads kernels and thread pools. On a GPU the allocator's account of live tensors, exact in any process.
    """
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Resets the high-water mark to the present size. getrusage would not do: its peak includes the imports, and even
    # the parent's size at the time of the fork.
    Path("/proc/self/clear_refs").write_text("5")
    start = _status("VmRSS")
    run()
    return _status("VmHWM") - start


def in_a_process(
    program: str,
    options: Sequence[str],
    args: argparse.Namespace,
    names: Sequence[str],
    environment: dict[str, str] | None = None,
) -> float:
    """The number that a benchmark prints last when it calls itself.

    Args:
        options: first on the command line.
        args, names: parsed options that are handed on, and which.
    """
    handed = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    command = [sys.executable, program, *options, *handed]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | (environment or {}))
    return float(done.stdout.split()[-1])


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _status(key: str) -> float:
    """A size from the kernel's account of this process, in megabytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
