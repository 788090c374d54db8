"""`speechrl train` with faults: `python -m tests.chaos.driver config.yaml plan.json faults.jsonl`."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from cluster.commands.train import train
from cluster.config import load_config
from speech.errors import UserError
from tests.chaos.faults import Fault
from tests.chaos.injector import Injector


def main(config_file: str, plan: str, log: str) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    faults = [Fault(**fault) for fault in json.loads(Path(plan).read_text(encoding="utf-8"))]
    config = load_config(config_file)
    # The nodes of a cluster are started by the test, whose child this is.
    root = os.getpid() if config.ray.address is None else os.getppid()
    with Injector(faults, Path(log), root, Path(config.runs_dir)).installed():
        try:
            return train(config)
        except UserError as error:  # as the command does
            logging.error("%s", error)
            return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
