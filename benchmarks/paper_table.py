"""Our version of the paper's tables and of its stability plot (2509.18569): which objective and which rewards do what.

    python benchmarks/paper_table.py tts --seeds 1 2 3         # base, GRPO, DiffRO, both, filter, R1 to R3, KL
    python benchmarks/paper_table.py asr --seeds 1 2 3         # base, R1, R1+R2, R1+R2+R3, by kind of utterance
    python benchmarks/paper_table.py stability --steps 300     # WER while training goes on

Every row is `speechrl train` on a demo configuration with a few overrides. Prints Markdown, and draws a plot. The
figures of each completed run are kept (`--kept`), and such a run is not run again; one that was interrupted is resumed.
With `--jobs 2` two runs share the machine, each with one thread for everything: more runs an hour on two cores, as
small models leave a second thread idle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paper_figures import Rows, read_asr, read_curves, read_tts, report_asr, report_stability, report_tts
from paper_runs import RUNS, Figures, Row, Runner

NO_STOP = "{name: no_stop, weight: 0.5}"
"""In every TTS row: without it a policy may leave speech unfinished, which no judge can hear."""
TTS_R1 = f"{{name: tts_accuracy}}, {NO_STOP}"
TTS_R2 = "{name: duration, weight: 0.3}"
TTS_R3 = "{name: diversity, weight: 0.1}"
ASR_R1 = "{name: accuracy}"
ASR_R2 = "{name: hallucination, weight: 0.3}"
ASR_R3 = "{name: keyword, weight: 0.2}"


def rewards(*items: str) -> str:
    """An override of `rewards.items`."""
    return f"rewards.items=[{', '.join(items)}]"


BASE = Row("no RL", "base", ("steps=0", "evaluation.after=false"))
"""Its `before` is the first row; the others are evaluated after training only."""

TTS_ROWS = (
    Row("GRPO, R1", "grpo", ("objective=grpo", rewards(TTS_R1))),
    Row("DiffRO, R1", "diffro", ("objective=diffro", rewards(TTS_R1))),
    Row(
        "GRPO + DiffRO, R1, no filter",
        "nofilter",
        ("objective=combined", "learner.diffro.filter=none", rewards(TTS_R1)),
    ),
    Row("GRPO + DiffRO + filter, R1", "filter", ("objective=combined", rewards(TTS_R1))),
    Row("GRPO + DiffRO + filter, R1+R2", "r2", ("objective=combined", rewards(TTS_R1, TTS_R2))),
    Row("GRPO + DiffRO + filter, R1+R2+R3", "r3", ("objective=combined", rewards(TTS_R1, TTS_R2, TTS_R3))),
)
# DiffRO with the full KL to the start, β 0.1 as in both papers (the rows above have none), and λ 1 instead of 0.1, so
# that loss and KL have the papers' ratio; 2507.05911 has no filter.
FULL_KL = ("learner.loss.kl_coef=0.1", "learner.loss.kl_estimator=full")
DIFFRO_KL = ("objective=diffro", "learner.diffro.weight=1.0", *FULL_KL, rewards(TTS_R1))
KL_ROWS = (
    Row("DiffRO, R1, KL", "diffro-kl", DIFFRO_KL),
    Row("DiffRO, R1, KL, no filter", "diffro-kl-nofilter", (*DIFFRO_KL, "learner.diffro.filter=none")),
)
ASR_ROWS = (
    Row("R1", "r1", (rewards(ASR_R1),)),
    Row("R1+R2", "r2", (rewards(ASR_R1, ASR_R2),)),
    Row("R1+R2+R3", "r3", (rewards(ASR_R1, ASR_R2, ASR_R3),)),
)


@dataclass(frozen=True)
class Table:
    """What a table runs, how a run's folder is read, and how all of it is reported."""

    config: str
    rows: tuple[Row, ...]
    read: Callable[[Path], Figures]
    report: Callable[[Rows, Path], None]


TABLES = {
    "tts": Table("configs/tts_demo.yaml", (*TTS_ROWS, *KL_ROWS), read_tts, report_tts),
    "asr": Table("configs/asr_demo.yaml", ASR_ROWS, read_asr, report_asr),
    "stability": Table("configs/tts_demo.yaml", (*TTS_ROWS[:4], *KL_ROWS), read_curves, report_stability),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="stability: the first of them only")
    parser.add_argument("--steps", type=int, help="of every run (default: the configuration's; stability: 300)")
    parser.add_argument("--every", type=int, default=20, help="stability: steps between two evaluations")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each with single threads (1)")
    parser.add_argument("--kept", type=Path, default=RUNS / "kept", help="folder of the figures of completed runs")
    parser.add_argument("--plot", type=Path, help="file of the plot (default: beside the runs)")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is there")
    arguments = parser.parse_args()
    runner = Runner(arguments.jobs, arguments.report_only, arguments.kept)
    name, table = arguments.table, TABLES[arguments.table]
    plot = arguments.plot or RUNS / f"{name}.png"
    if name == "stability":
        steps = arguments.steps or 300
        more = (
            f"steps={steps}",
            f"evaluation.every={arguments.every}",
            "evaluation.before=false",
            "evaluation.after=false",
        )
        found = runner.run(f"{name}{steps}", table.config, table.rows, arguments.seeds[:1], more, table.read)
    else:
        more = ("evaluation.before=false", *(() if arguments.steps is None else (f"steps={arguments.steps}",)))
        found = runner.run(name, table.config, [BASE], arguments.seeds[:1], (), table.read)
        found |= runner.run(name, table.config, table.rows, arguments.seeds, more, table.read)
    if not any(found.values()):
        raise SystemExit("nothing was run yet")
    table.report({row.label: figures for row, figures in found.items()}, plot)


if __name__ == "__main__":
    main()
