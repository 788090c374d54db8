"""Random faults over short real runs, each run audited from its own records.

    python -m benchmarks.chaos --faults 100 --per-run 3 --node-runs 6 --out chaos    # hours on two cores
    python -m benchmarks.chaos --faults 100 --per-run 3 --node-runs 6 --out chaos    # again: goes on where it stopped
    python -m benchmarks.chaos --faults 12 --staleness 1 --engines 2 --out chaos1    # sampling beside learning
    python -m benchmarks.chaos --faults 6 --staleness 1 --model assets/asr_demo --out chaos2    # a model that has a WER

With one engine and `--staleness 0` the weights must be those of the undisturbed run, bit by bit. Otherwise the order of
events decides which weights sample a prompt, so that two undisturbed runs differ too; then the final WER of the test
split must lie within `WER_TOLERANCE` of the undisturbed run's. One line per run in `<out>/results.jsonl`, and tables at
the end; the exit code says whether every run was clean.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.runs import durable
from tests.chaos.audit import Outcome, same_weights
from tests.chaos.faults import ONE_NODE, PHASES, Fault, random_plan
from tests.chaos.harness import disturbed
from tests.chaos.recovery import WITHOUT_ENGINES, recovery
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import ROOT
from tests.small_disk import can_mount

WER_TOLERANCE = 0.03
"""Absolute. On the 440 test utterances (2,085 scoring units, which count for about half as many because errors come in
clusters) a WER of 30 % has a standard error of 1.4 points; this is two of them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="in all (100)")
    parser.add_argument("--per-run", type=int, default=3, help="faults of one run (3)")
    parser.add_argument("--steps", type=int, default=8, help="steps of one run (8)")
    parser.add_argument("--engines", type=int, default=1, help="engines of one run (1)")
    parser.add_argument("--staleness", type=int, default=0, help="of every run (0)")
    parser.add_argument("--node-runs", type=int, default=0, help="every so many runs one on two raylets (0: none)")
    parser.add_argument("--model", type=Path, help="checkpoint to train (a tiny random one, whose WER is always 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the plans (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="folder for everything (runs/chaos)")
    parser.add_argument("--limit", type=int, help="stop after so many runs of this call")
    arguments = parser.parse_args()

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = arguments.model or out / "tiny"
    if not model.exists():
        write_demo_checkpoint(model, scale=1.5)
    settings = settings_of(arguments)
    results = out / "results.jsonl"
    done = {line["seed"] for line in durable.read(results)}
    runs = -(-arguments.faults // arguments.per_run)
    todo = [arguments.seed + run for run in range(runs) if arguments.seed + run not in done][: arguments.limit]
    kinds = [kind for kind in ONE_NODE if kind != "full_disk" or can_mount()]
    reference = undisturbed(out / "undisturbed", model, settings) if todo else None
    for seed in todo:
        nodes = 2 if arguments.node_runs and (seed - arguments.seed + 1) % arguments.node_runs == 0 else 1
        lost = None if nodes == 1 else "kill_raylet"
        plan = random_plan(arguments.per_run, arguments.steps - arguments.staleness, seed, kinds, one_of=lost)
        started = time.monotonic()
        outcome = disturbed(fresh(out / f"run-{seed}"), model, plan, nodes=nodes, **settings)
        if not outcome.problems and reference is not None:
            outcome.problems += compare(outcome, reference, exact=settings["evaluation"]["after"] is False)
        line = {
            "seed": seed,
            "nodes": nodes,
            "faults": [f"{fault.kind}@{fault.step}/{fault.phase}" for fault in plan],
            "problems": outcome.problems,
            "executions": outcome.executions,
            "recoveries": recoveries(outcome, plan, arguments.engines),
            "seconds": round(time.monotonic() - started),
        }
        durable.append(results, [line])
        print(json.dumps(line), flush=True)
    return report(durable.read(results))


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "steps": arguments.steps,
        "engines__count": arguments.engines,
        "staleness": arguments.staleness,
        "engines__kv_cache_gb": 0.05 if arguments.engines > 1 else 0.1,
        # Where weights are compared, the WER that follows from them says nothing new.
        "evaluation": {"before": False, "after": arguments.engines > 1 or arguments.staleness > 0},
    }
    if arguments.model is not None:
        settings |= {
            "data__test": str(ROOT / "assets" / "speech" / "test.jsonl"),
            "sampling__max_new_tokens": 48,
            "engines__max_model_len": 256,
            "engines__max_num_seqs": 64,
            "learner__lr": 3e-4,
        }
    return settings


def undisturbed(folder: Path, model: Path, settings: dict[str, Any]) -> Outcome:
    """The run to compare with."""
    outcome = disturbed(fresh(folder), model, [], **settings)
    assert not outcome.problems, outcome.problems
    return outcome


def compare(outcome: Outcome, reference: Outcome, exact: bool) -> list[str]:
    if exact:
        return [] if same_weights(outcome, reference) else ["weights differ from the undisturbed run's"]
    if abs(outcome.wer - reference.wer) <= WER_TOLERANCE:
        return []
    return [f"WER {outcome.wer:.2%}, undisturbed {reference.wer:.2%}"]


def recoveries(outcome: Outcome, plan: list[Fault], engines: int) -> list[dict[str, Any]]:
    """How long the faults that left the run without engines kept it from sampling."""
    kinds = WITHOUT_ENGINES if engines == 1 else WITHOUT_ENGINES[:1]
    found = []
    times = [0.0, *(entry["time"] for entry in outcome.struck), math.inf]
    for number, entry in enumerate(outcome.struck):
        if entry["kind"] in kinds and entry["phase"] == "generate":
            measured = recovery(outcome.folder, entry, previous=times[number], following=times[number + 2])
            if measured is not None:
                found.append({"kind": entry["kind"], **{k: round(v, 1) for k, v in vars(measured).items()}})
    return found


def fresh(folder: Path) -> Path:
    """Remove what an interrupted call of this benchmark has left."""
    if (folder / "runs").is_mount():
        subprocess.run(["umount", "--lazy", str(folder / "runs")], check=True)
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def report(lines: list[dict]) -> int:
    """Print the tables; 0 when every run was clean."""
    kinds = Counter(fault.split("@")[0] for line in lines for fault in line["faults"])
    unclean = [line for line in lines if line["problems"]]
    print(f"\n{sum(kinds.values())} faults in {len(lines)} runs, {len(lines) - len(unclean)} of them clean\n")
    print("| fault | injected | in runs that were not clean |\n|---|---|---|")
    for kind in sorted(PHASES):
        bad = sum(fault.startswith(f"{kind}@") for line in unclean for fault in line["faults"])
        print(f"| {kind} | {kinds[kind]} | {bad} |")
    for line in unclean:
        print(f"run {line['seed']} ({', '.join(line['faults'])}): {'; '.join(line['problems'])}")
    found = [entry for line in lines for entry in line["recoveries"]]
    if found:
        print("\nNo engine left, while sampling; seconds:\n")
        print("| fault | to the next samples | the new engine's start | the first engine's start |\n|---|--:|--:|--:|")
        for entry in sorted(found, key=lambda entry: entry["samples"]):
            print(f"| {entry['kind']} | {entry['samples']} | {entry['start']} | {entry['first_start']} |")
    return 1 if unclean else 0


if __name__ == "__main__":
    sys.exit(main())
