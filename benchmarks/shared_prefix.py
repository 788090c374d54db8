"""Learner forward + backward with and without shared prefixes: time and memory, side by side, as a Markdown table.

    python benchmarks/shared_prefix.py                      # P = 60, 200, 400, 750; G = 8, 12; R = 40
    python benchmarks/shared_prefix.py --prompts 400 --groups 8 --repeats 3
    python benchmarks/shared_prefix.py --device cuda --dtype bfloat16 --hidden 1024 --layers 28 --head-dim 64 \
        --vocabulary 151936 --batch 4

Both forms run the learner's own code on the same packed tokens. Times interleave the two forms (A B A B …) in one
process, so that other work on the machine hits both alike. On a CPU memory is the growth of the peak resident size over
the loaded model, each form in a process of its own (Linux only); on a GPU it is what tensors hold at the peak.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

import meter

FORMS = ("shared", "plain")


def main() -> None:
    args = _arguments()
    # Before torch starts its thread pool.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.memory_of:
        print(_peak_growth(args, args.prompts[0], args.groups[0], args.memory_of))
        return
    print(
        f"Language model: Qwen3, hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocabulary}, "
        f"{meter.hardware(args)}; {args.batch} group(s) per micro-batch, R = {args.response}.\n"
        f"Median of {args.repeats} repeats (lowest–highest); memory above the loaded model.\n"
    )
    print("| P | G | shared, ms | plain, ms | faster | shared, MB | plain, MB | smaller |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for group in args.groups:
        for prompt in args.prompts:
            times, memory = _measure(args, prompt, group)
            medians = {form: statistics.median(values) for form, values in times.items()}
            cells = [f"{medians[f]:.0f} ({min(times[f]):.0f}–{max(times[f]):.0f})" for f in FORMS]
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
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of --head-dim")
    parser.add_argument("--head-dim", type=int, default=32, help="of an attention head")
    parser.add_argument("--layers", type=int, default=3, help="decoder layers")
    parser.add_argument("--vocabulary", type=int, default=2048, help="vocabulary size")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats of each form")
    meter.add_arguments(parser)
    # How this program calls itself for one measurement of memory.
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    return parser.parse_args()


class Case:
    """A model and a batch of one shape; `run` is what the learner does with a micro-batch."""

    def __init__(self, args: argparse.Namespace, prompt: int, group: int) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        from learner.batches.batch import Sample, TrainGroup
        from learner.model import attention
        from speech.records import PromptLayout

        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        attention.register()
        self.device = args.device
        config = Qwen3Config(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=max(1, args.hidden // args.head_dim),
            num_key_value_heads=max(1, args.hidden // args.head_dim // 2),
            head_dim=args.head_dim,
            tie_word_embeddings=True,
            attn_implementation=attention.NAME,
        )
        with torch.device(args.device):
            model = Qwen3ForCausalLM(config)
        self.model = model.to(getattr(torch, args.dtype)).eval()

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
        from learner.batches.packing import pack, totals
        from learner.config import LossConfig
        from learner.losses.policy.grpo import grpo_loss
        from learner.model.logprobs import selected_logprobs

        batch, device = pack(self.groups, shared_prefix=form == "shared"), self.device
        hidden = self.model.base_model(
            input_ids=batch.input_ids[None].to(device),
            position_ids=batch.position_ids[None].to(device),
            blocks=batch.blocks,
            use_cache=False,
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings().weight
        logprobs, entropy = selected_logprobs(hidden[batch.predict_from.to(device)], head, batch.targets.to(device))
        loss, _ = grpo_loss(
            new_logprobs=logprobs,
            old_logprobs=logprobs,
            behaviour_logprobs=batch.behaviour_logprobs.to(device),
            reference_logprobs=None,
            entropy=entropy,
            advantages=batch.advantages.to(device),
            sample_of=batch.sample_of.to(device),
            sample_lengths=batch.sample_lengths.to(device),
            totals=totals(self.groups),
            config=LossConfig(),
        )
        loss.backward()
        self.model.zero_grad()
        return float(loss.detach())


def _measure(args: argparse.Namespace, prompt: int, group: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of each form, taken in turns after one untimed round, and megabytes at its peak."""
    case = Case(args, prompt, group)
    losses = [case.run(form) for form in FORMS]
    assert abs(losses[0] - losses[1]) < 1e-4, f"the two forms disagree: {losses}"
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(args.repeats):
        for form in FORMS:
            times[form].append(1e3 * meter.seconds(partial(case.run, form), args.device, time.perf_counter))
    if args.device == "cuda":
        return times, {form: meter.peak_growth(partial(case.run, form), args.device) for form in FORMS}
    del case
    return times, {form: _memory(args, prompt, group, form) for form in FORMS}


def _memory(args: argparse.Namespace, prompt: int, group: int, form: str) -> float:
    """Megabytes that one form needs on top of the loaded model, measured in a fresh process."""
    options = ("--memory-of", form, "--prompts", str(prompt), "--groups", str(group))
    names = ("response", "batch", "hidden", "head_dim", "layers", "vocabulary", "threads", "dtype")
    return meter.in_a_process(__file__, options, args, names)


def _peak_growth(args: argparse.Namespace, prompt: int, group: int, form: str) -> float:
    case = Case(args, prompt, group)
    # One small step first: lazily loaded kernels and thread pools are not the form's memory.
    Case(argparse.Namespace(**{**vars(args), "response": 2, "batch": 1}), 2, 2).run(form)
    return meter.peak_growth(partial(case.run, form), args.device)


if __name__ == "__main__":
    main()
