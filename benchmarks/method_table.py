"""The losses, the advantages, credit by word, and what limits forgetting, each on a demo at the same budget.

    python benchmarks/method_table.py losses --jobs 2          # policy losses, four updates on each batch of rollouts
    python benchmarks/method_table.py advantages --jobs 2      # estimators, one update: on-policy, as in the demo
    python benchmarks/method_table.py credit --jobs 2          # by sentence and by word
    python benchmarks/method_table.py forgetting --jobs 2      # LoRA, scale, merging, replay: what is learned and kept

Every row is `speechrl train configs/asr_demo.yaml` with a few overrides, `--steps` long (90: half of the demo, with the
same fall of the learning rate) and with single threads, over three seeds. Runs are kept, resumed and not repeated as
those of `paper_table.py`.

*Forgetting* is measured on 400 utterances of general speech that the demo's model was made with (`sft.jsonl`); replay
takes from the others. A merged or scaled model is a function of a finished run and costs no training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from paper_figures import cell, edits, print_table
from paper_runs import RUNS, SINGLE_THREADED, Figures, Row, Runner, load

CONFIG = "configs/asr_demo.yaml"
START = Path("assets/asr_demo")
SHORT_EDITS = ("sub", "del", "ins")
GENERAL = Path("assets/speech/sft.jsonl")
GENERAL_TEST, GENERAL_REPLAY = RUNS / "general-test.jsonl", RUNS / "general-replay.jsonl"
KNOWN = 400
"""Of GENERAL, how many are kept out of replay and measure what is forgotten: every sixth line."""
CURVES = ("reward/mean", "learner/entropy", "learner/clipped_low", "learner/clipped_high", "learner/importance_ess")


FOUR = ("learner.updates_per_step=4",)
"""With a single update all ratios are 1, and these losses differ in nothing but their aggregation."""


def loss(name: str, *more: str) -> Row:
    return Row(name, name, (f"learner.loss.name={name}", *FOUR, *more))


# GSPO and GMPO clip a mean over the response, whose scale is another: the bounds are their papers' (2507.18071 §5.1,
# 2507.20673 §4).
LOSSES = (
    loss("grpo"),
    loss("dual_clip"),
    loss("cispo", "learner.loss.clip_low=1"),
    Row("gspo, bounds of grpo", "gspo_wide", ("learner.loss.name=gspo", *FOUR, "learner.loss.aggregation=sequence")),
    loss("gspo", "learner.loss.clip_low=3e-4", "learner.loss.clip_high=4e-4", "learner.loss.aggregation=sequence"),
    loss("gmpo", "learner.loss.clip_low=0.33", "learner.loss.clip_high=0.49", "learner.loss.aggregation=sequence"),
)
ADVANTAGES = (
    Row("group_std (GRPO)", "group_std"),
    Row("group_mean (Dr. GRPO)", "group_mean", ("learner.advantage=group_mean",)),
    Row("leave_one_out (RLOO)", "leave_one_out", ("learner.advantage=leave_one_out",)),
    Row("reinforce_pp", "reinforce_pp", ("learner.advantage=reinforce_pp",)),
    Row("reinforce_pp_baseline", "reinforce_pp_baseline", ("learner.advantage=reinforce_pp_baseline",)),
    Row(
        "GDPO",
        "gdpo",
        ("learner.advantage=reinforce_pp_baseline", "rewards.normalise_parts=true"),
    ),
)
KL = ("learner.loss.kl_coef=0.02", "learner.loss.kl_estimator=k1")
KL_PLACES = (
    Row("group_std, KL in the loss", "kl_loss", ("learner.loss.kl_coef=0.02", "learner.loss.kl_estimator=k2")),
    Row("group_std, KL in the reward", "kl_reward", (*KL, "learner.loss.kl_in=reward")),
)


CREDIT = (
    Row("by sentence", "sentence"),
    Row("half by word", "half", ("rewards.items.0.options.word_credit=0.5",)),
    Row("by word", "word", ("rewards.items.0.options.word_credit=1",)),
)
LORA = ("learner.lora.rank=16", "learner.lora.alpha=32", "engines.lora_rank=16", "learner.lr=1.0e-3")
REPLAY = (f"data.replay={GENERAL_REPLAY}", "data.replay_weight=0.1")
FORGETTING = (
    Row("full training", "full"),
    Row("full training, replay", "replay", REPLAY),
    Row("LoRA, rank 16", "lora", LORA),
)
SHARES = (1.0, 0.7, 0.5)
"""Weight of the trained model in what is evaluated; the rest is the start. Of LoRA this is its scale at export."""


@dataclass(frozen=True)
class Table:
    """What a table runs, how a run's folder is read, and how all of it is reported."""

    rows: tuple[Row, ...]
    read: Callable[[Path], Figures]
    report: Callable[[Mapping[str, Sequence[Figures]]], None]


def read_run(folder: Path) -> Figures:
    """Scores after the run, and means of some metrics over its last ten steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][-10:]
    # null: a step without samples to tell
    last = {key: fmean(v for line in lines if (v := line.get(key)) is not None) for key in CURVES if key in lines[-1]}
    return {"summary": load(folder / "evaluation-after.json")["summary"], "last": last}


def report_runs(rows: Mapping[str, Sequence[Figures]]) -> None:
    """WER, errors by kind, and the last steps."""
    header = ["", "seeds", "WER, %", "S / D / I", "reward", "entropy, nats", "clipped, %", "ESS"]
    body = []
    for label, seeds in rows.items():
        last = [figures["last"] for figures in seeds]
        clipped = [one.get("learner/clipped_low", 0) + one.get("learner/clipped_high", 0) for one in last]
        body.append(
            [
                label,
                str(len(seeds)),
                cell([figures["summary"]["wer"] for figures in seeds], "%"),
                edits((figures["summary"] for figures in seeds), SHORT_EDITS),
                cell([one.get("reward/mean") for one in last], ".3f"),
                cell([one.get("learner/entropy") for one in last], ".3f"),
                cell(clipped, "%"),
                cell([one.get("learner/importance_ess") for one in last], ".3f"),
            ]
        )
    print_table(header, body)


def read_forgetting(folder: Path) -> Figures:
    """Scores on the household and on general speech, of the trained model and of its mixtures with the start."""
    found: Figures = {}
    for share in SHARES:
        model = folder / "export"
        if share < 1:
            model = folder / f"merged-{share}"
            if not model.exists():
                weights = ("--weights", str(share), str(round(1 - share, 3)))
                speechrl("merge", str(folder / "export"), str(START), *weights, "--out", str(model))
        found[str(share)] = evaluations(model, folder)
    return found


def evaluations(model: Path, folder: Path) -> dict[str, Any]:
    """Summaries on both test sets."""
    sets = {"household": Path("assets/speech/test.jsonl"), "general": GENERAL_TEST}
    found = {}
    for name, manifest in sets.items():
        out = folder / f"{model.name}-{name}.jsonl"
        limits = ("--config", CONFIG, "engines.threads=1", "encoder.threads=1")
        speechrl("evaluate", "--model", str(model), "--manifest", str(manifest), "--out", str(out), *limits)
        found[name] = load(out.with_suffix(".summary.json"))
    return found


def report_forgetting(rows: Mapping[str, Sequence[Figures]]) -> None:
    """WER on both sets, by the share of the trained model."""
    start = RUNS / "start"
    start.mkdir(exist_ok=True)
    kept = start / "figures.json"
    if not kept.is_file():
        kept.write_text(json.dumps(evaluations(START, start)), encoding="utf-8")
    before = load(kept)
    body = [["start", "", "", *(cell([before[name]["wer"]], "%") for name in before)]]
    for label, seeds in rows.items():
        for share in SHARES:
            wers = [[figures[str(share)][name]["wer"] for figures in seeds] for name in before]
            body.append([label, str(len(seeds)), str(share), *(cell(values, "%") for values in wers)])
    print_table(["", "seeds", "share of the trained weights", "household: WER, %", "general: WER, %"], body)


def write_general() -> None:
    """Manifests of general speech: what measures forgetting, and what may be replayed."""
    lines = GENERAL.read_text(encoding="utf-8").splitlines()
    parts: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(lines):
        entry = json.loads(line)
        entry["audio"] = str((GENERAL.parent / entry["audio"]).absolute())
        parts[number % (len(lines) // KNOWN) != 0].append(json.dumps(entry, ensure_ascii=False) + "\n")
    for file, part in zip((GENERAL_TEST, GENERAL_REPLAY), parts, strict=True):
        file.write_text("".join(part), encoding="utf-8")


def speechrl(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "cluster.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


TABLES = {
    "losses": Table(LOSSES, read_run, report_runs),
    "advantages": Table((*ADVANTAGES, *KL_PLACES), read_run, report_runs),
    "credit": Table(CREDIT, read_run, report_runs),
    "forgetting": Table(FORGETTING, read_forgetting, report_forgetting),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=90, help="of every run (90)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument("--kept", type=Path, default=RUNS / "kept", help="folder of the figures of completed runs")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is there")
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    runner = Runner(arguments.jobs, arguments.report_only, arguments.kept)
    # Always: sums of several threads are rounded in another order, and the table is not to depend on --jobs.
    more = [f"steps={arguments.steps}", "evaluation.before=false", *SINGLE_THREADED]
    if arguments.table == "forgetting":
        write_general()
        more += ["evaluation.after=false"]
    found = runner.run(arguments.table, CONFIG, table.rows, arguments.seeds, more, table.read)
    known = {row.label: figures for row, figures in found.items() if figures}
    if not known:
        raise SystemExit("nothing was run yet")
    table.report(known)


if __name__ == "__main__":
    main()
