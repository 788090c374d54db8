"""One run of TRL's GRPO with Hugging Face `generate`: prompts and responses of given lengths, a reward for nothing.

Runs in the environment of `make bench-peer`, which has TRL; benchmarks/peer/bench.py calls it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.monotonic())


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """As benchmarks/peer/reward.py."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the causal LM")
    parser.add_argument("--out", required=True, help="file for the figures")
    for name in ("prompt", "response", "prompts", "group", "micro-batch", "steps", "threads", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    # A word for each id, so that a prompt has exactly the tokens that it should have.
    size = model.config.vocab_size
    words = Tokenizer(WordLevel({f"t{number}": number for number in range(size)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    end = size - 1
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token=f"t{end}")
    model.generation_config.eos_token_id = model.config.eos_token_id = end
    model.generation_config.pad_token_id = model.config.pad_token_id = 0
    draw = random.Random(args.seed)
    texts = [
        " ".join(f"t{draw.randrange(1, end)}" for _ in range(args.prompt)) for _ in range(args.prompts * args.steps)
    ]
    batch = args.prompts * args.group
    config = GRPOConfig(
        output_dir=f"{args.out}.trl",
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=batch // args.micro_batch,
        num_generations=args.group,
        max_completion_length=args.response,
        generation_kwargs={"min_new_tokens": args.response},
        temperature=1.0,
        beta=0.0,
        num_iterations=1,
        loss_type="grpo",
        learning_rate=1e-5,
        max_steps=args.steps,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    clock = Clock()
    trainer = GRPOTrainer(model, reward, config, Dataset.from_dict({"prompt": texts}), processing_class=tokenizer)
    trainer.add_callback(clock)
    begun = time.monotonic()
    trainer.train()
    name = "completions/mean_length"
    lengths = {entry[name] for entry in trainer.state.log_history if name in entry}
    assert lengths == {float(args.response)}, lengths
    seconds = [after - before for before, after in zip([begun, *clock.ends], clock.ends, strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    figures = {"seconds": seconds, "trajectories": batch, "peak_gb": peak}
    Path(args.out).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
