"""Copies what a run trained to where the demo expects it: `python -m assets.build.collect runs/NAME assets/NAME`.

Beside the model it writes the run's curve, `training_curve.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

SHOWN = ("learner/nll", "learner/ctc")
EVERY = 50
"""Steps between two points of the curve, beside those at which the run was evaluated."""


def collect(run: Path, out: Path) -> str:
    """Replace `out` by the run's export and its curve; returns the curve."""
    points = []
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        evaluated = [key for key in line if key.startswith("valid/")]
        if evaluated or line["step"] % EVERY == 0:
            points.append({key: line[key] for key in ("step", *SHOWN, *evaluated) if key in line})
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run / "export", out)
    curve = "".join(json.dumps(point) + "\n" for point in points)
    (out / "training_curve.jsonl").write_text(curve, encoding="utf-8")
    return curve


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.collect", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a completed run")
    parser.add_argument("out", type=Path, help="folder of the model, replaced")
    arguments = parser.parse_args()
    print(collect(arguments.run, arguments.out), end="")
    print(f"{arguments.out}: from {arguments.run}")


if __name__ == "__main__":
    main()
