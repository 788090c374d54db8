"""Ours against TRL's GRPO with Hugging Face `generate`, in turn on this machine: trajectories per second, as a table.

    make bench-peer                                            # both jobs, 5 times each: about an hour on two cores
    python -m benchmarks.peer.bench --peer PYTHON --jobs tts --repeats 1 --steps 5

The same weights, the same number of prompts, samples and updates, exactly the same lengths, two cores for each. The
reward costs nothing. TRL reads 400 tokens of text where ours hears 400 positions of sound: it has no encoder to pay
for. Which micro-batch is best for TRL is tried first (`--micro-batch`). The first steps of a run are left out.

`share` is what the learner and the engine reach of the machine's own matrix product (1,024 × 1,024, float32, the same
threads): the arithmetic that the job needs (each prompt once a group) over the time of the phase.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.overlap import PHASES, ROOT, phase_medians, training, training_settings, trajectories_per_second
from speech.families import load_family

PROMPTS, GROUP = 16, 8
PEER = "TRL"


@dataclass(frozen=True)
class Variant:
    """One way to run ours on so many cores.

    Attributes:
        staleness: S.
        processes: engines, and learner ranks.
        threads: of each.
    """

    staleness: int
    processes: int
    threads: int


def variants(cores: int) -> dict[str, Variant]:
    """By name. A decoding step of a small model is mostly Python, which a second thread does not help."""
    return {
        "ours, S=0": Variant(0, 1, cores),
        "ours, S=0, a process per core": Variant(0, cores, 1),
        "ours, S=1": Variant(1, 1, max(1, cores // 2)),
    }


@dataclass(frozen=True)
class Job:
    """One of the two shapes.

    Attributes:
        model: folder in `assets`, and configuration of this name.
        prompt: positions of a prompt; of the TTS demo the mean.
        response: tokens of each sample, exactly.
        settings: of our run besides those that all share.
    """

    model: str
    prompt: int
    response: int
    settings: dict[str, Any]


JOBS = {
    "tts": Job("tts_demo", 61, 150, {"objective": "grpo", "engines.max_model_len": 448}),
    "asr": Job("asr_demo", 400, 40, {"engines.max_model_len": 512, "engines.max_num_seqs": 128}),
}


@dataclass(frozen=True)
class Result:
    """Of one run: trajectories per second after the warm-up, peak memory of all processes in 10⁹ bytes, and median
    seconds of each phase (ours)."""

    rate: float
    peak_gb: float
    phases: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="Python of an environment that has TRL (requirements/peer.txt)")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="steps left out of the figures")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument(
        "--micro-batch", type=int, nargs="+", default=[16, 32, 128], help="of TRL, in samples; the best counts"
    )
    args = parser.parse_args()
    if args.steps <= args.warm_up:
        parser.error("--steps must be more than --warm-up")
    product = matrix_product(args.cores)
    print(f"Matrix product, {args.cores} threads: {product:.0f} GFLOP/s.")
    for name in args.jobs:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, args, Path(folder), product)


def compare(name: str, args: argparse.Namespace, folder: Path, product: float) -> None:
    job = JOBS[name]
    family = load_family(ROOT / "assets" / job.model)
    family.write_engine_model(folder / "model")
    parameters = family.load_language_model()
    data = sounds(folder, args.steps) if name == "asr" else ROOT / "assets" / "tts_speech" / "train.jsonl"
    tried = {size: trl(job, args, folder, size, seed=0).rate for size in args.micro_batch}
    micro_batch = max(tried, key=lambda size: tried[size])
    print(f"\n{name}: TRL's micro-batch of {micro_batch} is the best of {tried}", flush=True)
    results: dict[str, list[Result]] = defaultdict(list)
    for seed in range(1, args.repeats + 1):
        results[PEER].append(trl(job, args, folder, micro_batch, seed))
        for title, variant in variants(args.cores).items():
            results[title].append(ours(job, args, folder, data, variant, seed))
        for title, runs in results.items():
            print(f"{name}, seed {seed}, {title}: {runs[-1]}", file=sys.stderr, flush=True)
    report(name, job, results, arithmetic(parameters, job), product, args.cores)


def report(
    name: str, job: Job, results: dict[str, list[Result]], needed: dict[str, float], product: float, cores: int
) -> None:
    """Print the table of one job."""
    print(f"\n{name}-shaped: prompt {job.prompt}, response {job.response}, {PROMPTS} prompts × {GROUP} samples\n")
    print(f"| | trajectories/s (range) | ratio (range) | {', '.join(PHASES)}, s | share: engine / learner | GB |")
    print("|---|--:|--:|---|--:|--:|")
    base = [result.rate for result in results[PEER]]
    known = variants(cores)
    for title, runs in results.items():
        rates = [result.rate for result in runs]
        ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
        phases = {p: statistics.median(r.phases[p] for r in runs) for p in PHASES if runs[0].phases}
        shares: list[float] = []
        if phases:
            reach = product * known[title].processes * known[title].threads / cores
            shares = [needed[phase] / 1e9 / phases[phase] / reach for phase in ("generate", "learn")]
        row = [
            title,
            f"{statistics.median(rates):.1f} ({min(rates):.1f}–{max(rates):.1f})",
            f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})",
            ", ".join(f"{phases[p]:.2f}" for p in PHASES) if phases else "–",
            " / ".join(f"{share:.0%}" for share in shares) if shares else "–",
            f"{statistics.median(r.peak_gb for r in runs):.1f}",
        ]
        print(f"| {' | '.join(row)} |", flush=True)


def arithmetic(model: torch.nn.Module, job: Job) -> dict[str, float]:
    """Floating point operations that a step needs, by phase: a prompt once for its group, each sample once."""
    config: Any = model.config
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))  # the head among them
    head = config.vocab_size * config.hidden_size
    # A prompt's positions need no head, but for the last.
    prompt = job.prompt * 2 * (weights - head) + job.prompt**2 * 2 * _attention(config)
    response = job.response * 2 * weights + job.response * (job.prompt + job.response / 2) * 4 * _attention(config)
    forward = PROMPTS * (prompt + GROUP * response)
    return {"generate": forward, "learn": 3 * forward}


def _attention(config: Any) -> int:
    """Multiplications of a query with one key, and of its weight with one value, in all layers."""
    return int(config.num_hidden_layers * config.num_attention_heads * config.head_dim)


def matrix_product(threads: int) -> float:
    """GFLOP/s of the machine's matrix product, the best of ten."""
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        for _ in range(10):
            a @ b
        best = min(best, time.perf_counter() - begun)
    return 10 * 2 * 1024**3 / best / 1e9


def sounds(folder: Path, steps: int) -> Path:
    """A manifest of recordings that become 400 positions each: 16 s of noise at 25 positions a second."""
    lines = []
    for number in range(PROMPTS * steps):
        wave = np.random.default_rng(number).normal(0, 0.1, 16 * 16_000).astype(np.float32)
        soundfile.write(folder / f"{number}.flac", wave, 16_000)
        lines.append({"id": f"n{number}", "audio": str(folder / f"{number}.flac"), "text": "word", "duration": 16.0})
    manifest = folder / "noise.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return manifest


def trl(job: Job, args: argparse.Namespace, folder: Path, micro_batch: int, seed: int) -> Result:
    numbers = {
        "prompt": job.prompt,
        "response": job.response,
        "prompts": PROMPTS,
        "group": GROUP,
        "micro-batch": micro_batch,
        "steps": args.steps,
        "threads": args.cores,
        "seed": seed,
    }
    out = folder / "trl.json"
    command = [args.peer, str(ROOT / "benchmarks" / "peer" / "trl_job.py"), "--model", folder / "model", "--out", out]
    command += [str(part) for name, number in numbers.items() for part in (f"--{name}", number)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.cores), "HF_HUB_OFFLINE": "1"}
    _run(command, environment, folder)
    found = json.loads(out.read_text(encoding="utf-8"))
    seconds = found["seconds"][args.warm_up :]
    return Result(found["trajectories"] * len(seconds) / sum(seconds), found["peak_gb"], {})


def ours(job: Job, args: argparse.Namespace, folder: Path, data: Path, variant: Variant, seed: int) -> Result:
    name = f"s{variant.staleness}-{variant.processes}-{seed}"
    settings = training_settings(folder, name, seed, args.steps, variant.staleness, variant.threads)
    settings |= {
        "data.train": data,
        "data.valid": "null",
        "data.test": "null",
        "data.batch_prompts": PROMPTS,
        "sampling.group_size": GROUP,
        "sampling.min_new_tokens": job.response,
        "sampling.max_new_tokens": job.response,
        "rewards.items": '[{"name": "benchmarks.peer.reward:nothing"}]',
        "rewards.count": 1,
        "learner.train": "[language_model]",
        "learner.ranks": variant.processes,
        "engines.count": variant.processes,
    }
    _run(*training(ROOT / "configs" / f"{job.model}.yaml", settings | job.settings), folder)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = lines[args.warm_up :]
    assert all(line["rollout/trajectories"] == PROMPTS * GROUP for line in lines), "a group was replaced"
    summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
    return Result(trajectories_per_second(lines), summary["peak_memory_gb"], phase_medians(lines))


def _run(command: list[Any], environment: dict[str, str], folder: Path) -> None:
    """Raises:
    SystemExit: with what it printed, if it fails.
    """
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, stdout=output, stderr=output, check=False
        )
        if done.returncode:
            output.seek(0)
            raise SystemExit(f"{command} failed:\n{output.read()[-4000:]}")


if __name__ == "__main__":
    main()
