"""A run at the size of a real model: does it fit, and what do its phases take?

    python -m benchmarks.real_size                       # the shape of Qwen3-ASR-0.6B: 12 GB of training state
    python -m benchmarks.real_size --keep folder         # ... and leave model and run behind

The weights are random. Two steps of 4 prompts x 4 samples with a checkpoint (`checkpoint.asynchronous: false`), then a
resume and the third step, engines in bfloat16. It prints each step's phases and, of each execution, the seconds and the
most memory that the machine had in use beyond what it had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.overlap import PHASES, ROOT, training
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

STEPS = 3
AUDIO = {
    "num_mel_bins": 128,
    "encoder_layers": 18,
    "encoder_attention_heads": 14,
    "encoder_ffn_dim": 3584,
    "d_model": 896,
    "output_dim": 1024,
    "downsample_hidden_size": 480,
}


def text_shape(hidden: int) -> dict[str, int]:
    """Of Qwen3's language models with 28 layers: 1024 wide it is that of Qwen3-ASR-0.6B, 2048 wide of 1.7B."""
    return {
        "vocab_size": 151_936,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for model and run (a temporary one)")
    parser.add_argument("override", nargs="*", help="key=value, for the training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model"
        if not model.exists():
            write_checkpoint(model, dtype=torch.bfloat16, text=text_shape(1024), audio=AUDIO, scale=1.0)
        parameters = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 2
        print(f"{parameters / 1e6:,.0f} million parameters, encoder included\n")
        print("| execution | seconds | memory, GB |\n|---|--:|--:|")
        for name, steps in (("to the checkpoint of step 2", STEPS - 1), ("resumed, step 3", STEPS)):
            command, environment = training(ROOT / "configs" / "asr_demo.yaml", settings(folder, model, steps))
            started = time.monotonic()
            with peak_memory() as peak, (folder / "log.txt").open("a") as log:
                code = subprocess.run([*command, *args.override], env=environment, stdout=log, stderr=log).returncode
            print(f"| {name} | {time.monotonic() - started:.0f} | {peak[0] / 1e9:.1f} |", flush=True)
            if code:
                raise SystemExit((folder / "log.txt").read_text()[-4000:])
        metrics = (folder / "real" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        print(f"\n| step | {' | '.join(PHASES)} | whole, s |\n|--:|{'--:|' * (len(PHASES) + 1)}")
        for line in map(json.loads, metrics):
            cells = [f"{line.get(f'time/{phase}', 0):.1f}" for phase in (*PHASES, "step")]
            print(f"| {line['step']} | {' | '.join(cells)} |")


def settings(folder: Path, model: Path, steps: int) -> dict[str, Any]:
    return {
        "name": "real",
        "runs_dir": folder,
        "steps": steps,
        "model.path": model,
        "data.test": "null",
        "data.batch_prompts": 4,
        "sampling.group_size": 4,
        "sampling.max_new_tokens": 32,
        "engines.dtype": "bfloat16",
        "engines.max_num_seqs": 16,
        "engines.kv_cache_gb": 0.5,
        "evaluation.before": "false",
        "evaluation.after": "false",
        "checkpoint.every": STEPS - 1,
        "checkpoint.asynchronous": "false",
        "checkpoint.keep": 1,
        "learner.train": "[language_model]",
        "learner.micro_batch_tokens": 512,
        "learner.zero_variance": "keep",
        "learner.lr": 1e-6,
    }


@contextmanager
def peak_memory(every: float = 0.2) -> Iterator[list[float]]:
    """The most bytes in use beyond those of now, in a list of one. Page cache does not count."""
    before, peak, stop = psutil.virtual_memory().available, [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(every):
            peak[0] = max(peak[0], float(before - psutil.virtual_memory().available))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
