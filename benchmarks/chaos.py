"""Random faults over short real runs, each run audited from its own records.

    python -m benchmarks.chaos --faults 100 --per-run 3 --out chaos    # about an hour and a half on a quiet machine
    python -m benchmarks.chaos --faults 100 --per-run 3 --out chaos    # again after an interruption: goes on

One line per run in `<out>/results.jsonl`, and a table at the end; the exit code says whether every run was clean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from cluster import jsonl
from tests.chaos.audit import Outcome, disturbed
from tests.chaos.faults import PHASES, random_plan
from tests.demo_checkpoint import write_demo_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="in all (100)")
    parser.add_argument("--per-run", type=int, default=3, help="faults of one run (3)")
    parser.add_argument("--steps", type=int, default=8, help="steps of one run (8)")
    parser.add_argument("--engines", type=int, default=1, help="engines of one run (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the plans (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="folder for everything (runs/chaos)")
    parser.add_argument("--limit", type=int, help="stop after so many runs of this call")
    arguments = parser.parse_args()

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = out / "tiny"
    if not model.exists():
        write_demo_checkpoint(model, scale=1.5)
    settings = {"steps": arguments.steps, "engines__count": arguments.engines}
    results = out / "results.jsonl"
    done = {line["seed"] for line in (jsonl.read(results) if results.exists() else [])}
    reference: Outcome | None = None
    runs = -(-arguments.faults // arguments.per_run)
    todo = [arguments.seed + run for run in range(runs) if arguments.seed + run not in done][: arguments.limit]
    if arguments.engines == 1 and todo:
        reference = disturbed(out / "undisturbed", model, [], **settings)
        assert not reference.problems, reference.problems
    for seed in todo:
        plan = random_plan(arguments.per_run, arguments.steps, seed)
        started = time.monotonic()
        outcome = disturbed(out / f"run-{seed}", model, plan, **settings)
        if reference is not None and not outcome.problems:
            mine, theirs = outcome.weights, reference.weights
            if not all(torch.equal(mine[name], theirs[name]) for name in theirs):
                outcome.problems.append("weights differ from the undisturbed run's")
        line = {
            "seed": seed,
            "faults": [f"{fault.kind}@{fault.step}/{fault.phase}" for fault in plan],
            "problems": outcome.problems,
            "seconds": round(time.monotonic() - started),
        }
        jsonl.append(results, [line])
        print(json.dumps(line), flush=True)
    return report(jsonl.read(results))


def report(lines: list[dict]) -> int:
    """Print the table; 0 when every run was clean."""
    kinds = Counter(fault.split("@")[0] for line in lines for fault in line["faults"])
    unclean = [line for line in lines if line["problems"]]
    print(f"\n{sum(kinds.values())} faults in {len(lines)} runs, {len(lines) - len(unclean)} of them clean\n")
    print("| fault | injected | in runs that were not clean |\n|---|---|---|")
    for kind in sorted(PHASES):
        bad = sum(fault.startswith(f"{kind}@") for line in unclean for fault in line["faults"])
        print(f"| {kind} | {kinds[kind]} | {bad} |")
    for line in unclean:
        print(f"run {line['seed']} ({', '.join(line['faults'])}): {'; '.join(line['problems'])}")
    return 1 if unclean else 0


if __name__ == "__main__":
    sys.exit(main())
