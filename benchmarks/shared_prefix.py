"""Learner forward + backward with and without shared prefixes: time and memory, side by side, as a Markdown table.

    python benchmarks/shared_prefix.py                      # P = 60, 200, 400, 750; G = 8, 12; R = 40
    python benchmarks/shared_prefix.py --prompts 400 --groups 8 --repeats 3

Both forms run the learner's own code on the same packed tokens. Times interleave the two forms (A B A B …) in one
process, so that other work on the machine hits both alike. Memory is the growth of the peak resident size over
the loaded model, each form in a process of its own (Linux only).
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

FORMS = ("shared", "plain")


def main() -> None:
    args = _arguments()
    # Before torch starts its thread pool.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.memory_of:
        print(_peak_growth(args, args.prompts[0], args.groups[0], args.memory_of))
        return
    import torch

    print(
        f"Language model: Qwen3, hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocabulary}, float32; "
        f"{args.threads} thread(s), {platform.machine()}, torch {torch.__version__}; {args.batch} group(s) per "
        f"micro-batch, R = {args.response}.\n"
        f"Median of {args.repeats} repeats (lowest–highest); memory above the loaded model.\n"
    )
    print("| P | G | shared, ms | plain, ms | faster | shared, MB | plain, MB | smaller |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for group in args.groups:
        for prompt in args.prompts:
            times = _times(args, prompt, group)
            medians = {form: statistics.median(values) for form, values in times.items()}
            cells = [f"{medians[f]:.0f} ({min(times[f]):.0f}–{max(times[f]):.0f})" for f in FORMS]
            memory = {form: _memory(args, prompt, group, form) for form in FORMS}
            print(
                f"| {prompt} | {group} | {cells[0]} | {cells[1]} | {medians['plain'] / medians['shared']:.2f}× "
                f"| {memory['shared']:.0f} | {memory['plain']:.0f} | {memory['plain'] / memory['shared']:.2f}× |",
                flush=True,
            )


def _arguments() -> argparse.Namespace:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[60, 200, 400, 750], help="prompt positions P")
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 12], help="group sizes G")
    parser.add_argument("--response", type=int, default=40, help="response tokens R")
    parser.add_argument("--batch", type=int, default=1, help="groups per micro-batch")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size (a multiple of 32)")
    parser.add_argument("--layers", type=int, default=3, help="decoder layers")
    parser.add_argument("--vocabulary", type=int, default=2048, help="vocabulary size")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats of each form")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    # How this program calls itself for one measurement of memory.
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    return parser.parse_args()


class Case:
    """A model and a batch of one shape; `run` is what the learner does with a micro-batch."""

    def __init__(self, args: argparse.Namespace, prompt: int, group: int) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        from learner import attention
        from learner.batch import Sample, TrainGroup
        from speech.records import PromptLayout

        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        attention.register()
        self.model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=args.vocabulary,
                hidden_size=args.hidden,
                intermediate_size=3 * args.hidden,
                num_hidden_layers=args.layers,
                num_attention_heads=max(1, args.hidden // 32),
                num_key_value_heads=max(1, args.hidden // 64),
                head_dim=32,
                tie_word_embeddings=True,
                attn_implementation=attention.NAME,
            )
        ).eval()

        def ids(length: int) -> tuple[int, ...]:
            return tuple(torch.randint(0, args.vocabulary, (length,)).tolist())

        self.groups = [
            TrainGroup(
                PromptLayout(ids(prompt), 0, 0),
                tuple(Sample(ids(args.response), (-1.0,) * args.response, 1.0 - i % 3) for i in range(group)),
                audio=0,
            )
            for _ in range(args.batch)
        ]

    def run(self, form: str) -> float:
        from learner.logprobs import selected_logprobs
        from learner.losses import LossConfig, grpo_loss
        from learner.packing import pack, totals

        batch = pack(self.groups, shared_prefix=form == "shared")
        hidden = self.model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            blocks=batch.blocks,
            use_cache=False,
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings().weight
        logprobs, entropy = selected_logprobs(hidden[batch.predict_from], head, batch.targets)
        loss, _ = grpo_loss(
            new_logprobs=logprobs,
            old_logprobs=logprobs,
            behaviour_logprobs=batch.behaviour_logprobs,
            reference_logprobs=None,
            entropy=entropy,
            advantages=batch.advantages,
            sample_of=batch.sample_of,
            sample_lengths=batch.sample_lengths,
            totals=totals(self.groups),
            config=LossConfig(),
        )
        loss.backward()
        self.model.zero_grad()
        return float(loss.detach())


def _times(args: argparse.Namespace, prompt: int, group: int) -> dict[str, list[float]]:
    """Milliseconds of each form, taken in turns after one untimed round."""
    case = Case(args, prompt, group)
    losses = [case.run(form) for form in FORMS]
    assert abs(losses[0] - losses[1]) < 1e-4, f"the two forms disagree: {losses}"
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(args.repeats):
        for form in FORMS:
            start = time.perf_counter()
            case.run(form)
            times[form].append(1e3 * (time.perf_counter() - start))
    return times


def _memory(args: argparse.Namespace, prompt: int, group: int, form: str) -> float:
    """Megabytes that one form needs on top of the loaded model, measured in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", form, "--prompts", str(prompt), "--groups", str(group)]
    for name in ("response", "batch", "hidden", "layers", "vocabulary", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _peak_growth(args: argparse.Namespace, prompt: int, group: int, form: str) -> float:
    case = Case(args, prompt, group)
    # One small step first: lazily loaded kernels and thread pools are not the form's memory.
    Case(argparse.Namespace(**{**vars(args), "response": 2, "batch": 1}), 2, 2).run(form)
    gc.collect()
    # Resets the high-water mark to the present size. getrusage would not do: its peak includes the imports, and even
    # the parent's size at the time of the fork.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    case.run(form)
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """A size from the kernel's account of this process, in megabytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
