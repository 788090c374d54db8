"""`speechrl train` with faults: `python -m tests.chaos.driver config.yaml plan.json faults.jsonl`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from cluster.config import load_config
from cluster.train import train
from tests.chaos.faults import Fault, Injector


def main(config: str, plan: str, log: str) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    faults = [Fault(**fault) for fault in json.loads(Path(plan).read_text(encoding="utf-8"))]
    with Injector(faults, Path(log)).installed():
        return train(load_config(config))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
