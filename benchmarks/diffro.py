"""DiffRO forward + backward, chunked against naive full logits: time and memory side by side, as a Markdown table.

    python benchmarks/diffro.py                          # 16 trajectories of 500 tokens, speech vocabulary 6,561
    python benchmarks/diffro.py --hidden 896 --chunks 512 2048 --repeats 3
    python benchmarks/diffro.py --device cuda --dtype bfloat16 --hidden 896 --reward-hidden 512 --reward-layers 6

A step starts at the policy's final hidden states (both forms need the same forward pass up to there) and ends at the
gradients of these and of the output layer: distributions, relaxed one-hots, the Token2Text model, the CTC loss. The
naive form holds logits and one-hots of all positions at once. Noise and result are the same in both.

Times interleave the forms (A B A B …) in one process. On a CPU memory is the growth of the peak resident size, each
form in a process of its own (Linux only), whose allocator gives freed tensors back at once: glibc would otherwise keep
those of a chunk's size, and show its habits instead of what must be held. On a GPU it is what tensors hold at the peak.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

import meter

NAIVE = 0
"""The chunk size that stands for the naive form."""


def main() -> None:
    args = _arguments()
    # Before torch starts its thread pool.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.memory_of is not None:
        print(_peak_growth(args, args.memory_of))
        return
    case = Case(args)
    forms = [NAIVE, *args.chunks]
    losses = [case.run(form) for form in forms]
    assert max(losses) - min(losses) < 1e-3, f"the forms disagree: {losses}"
    print(
        f"{args.batch} trajectories of {args.tokens} speech tokens, speech vocabulary {args.vocabulary}, hidden "
        f"{args.hidden}, reward model {args.reward_hidden} wide with {args.reward_layers} layers, noise "
        f"`{args.noise}`, {meter.hardware(args)}.\n"
        f"Median of {args.repeats} repeats (lowest–highest); memory above the loaded model.\n"
    )
    # CPU time, which other work on the machine stretches less; a GPU's work shows on the wall clock only.
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    times: dict[int, list[float]] = {form: [] for form in forms}
    for _ in range(args.repeats):
        for form in forms:
            times[form].append(meter.seconds(partial(case.run, form), args.device, clock))
    if args.device == "cuda":
        memory = {form: meter.peak_growth(partial(case.run, form), args.device) for form in forms}
    else:
        del case
        memory = {form: _memory(args, form) for form in forms}
    what = "CPU seconds" if args.device == "cpu" else "seconds"
    print(f"| form | {what} | against naive | peak memory, MB | against naive |")
    print("|---|--:|--:|--:|--:|")
    for form in forms:
        median = statistics.median(times[form])
        print(
            f"| {'naive' if form == NAIVE else f'chunk {form}'} | {median:.3f} ({min(times[form]):.3f}–"
            f"{max(times[form]):.3f}) | {median / statistics.median(times[NAIVE]):.2f}× | {memory[form]:.0f} "
            f"| {memory[form] / memory[NAIVE]:.2f}× |",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="trajectories")
    parser.add_argument("--tokens", type=int, default=500, help="speech tokens of each")
    parser.add_argument("--labels", type=int, default=120, help="characters of each text")
    parser.add_argument("--vocabulary", type=int, default=6561, help="speech vocabulary")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size of the policy")
    parser.add_argument("--reward-hidden", type=int, default=64, help="width of the reward model")
    parser.add_argument("--reward-layers", type=int, default=2, help="layers of the reward model")
    parser.add_argument("--noise", choices=("fresh", "conditional"), default="conditional", help="Gumbel noise")
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 1024], help="positions at a time")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats of each form")
    meter.add_arguments(parser)
    # How this program calls itself for one measurement of memory.
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


class Case:
    """Hidden states, an output layer, a reward model and a packed batch of one shape."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from learner.batches.batch import Sample, TrainGroup
        from learner.batches.packing import pack, totals
        from learner.config import DiffROConfig
        from learner.token2text.model import Token2Text, Token2TextConfig
        from speech.records import PromptLayout

        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        stop = args.vocabulary

        def ids(low: int, high: int, length: int) -> tuple[int, ...]:
            return tuple(torch.randint(low, high, (length,)).tolist())

        groups = [
            TrainGroup(
                PromptLayout((stop,), 0, 0),
                (Sample((*ids(0, stop, args.tokens), stop), (), 1.0, finished=True),),
                audio=index,
                text_ids=ids(1, 29, args.labels),
            )
            for index in range(args.batch)
        ]
        self.batch, self.totals = pack(groups), totals(groups, "positive")
        self.settings = DiffROConfig(noise=args.noise)
        shape = Token2TextConfig(
            args.vocabulary,
            tuple("abcdefghijklmnopqrstuvwxyz' "),
            hidden=args.reward_hidden,
            layers=args.reward_layers,
        )
        self.reward_model, self.speech_ids = Token2Text(shape).to(args.device), range(args.vocabulary)
        place = {"device": args.device, "dtype": getattr(torch, args.dtype)}
        self.hidden = torch.randn(len(self.batch.targets), args.hidden).to(**place).requires_grad_()
        self.output_layer = torch.nn.Linear(args.hidden, args.vocabulary + 1, bias=False)
        self.output_layer.weight = torch.nn.Parameter((0.1 * torch.randn(args.vocabulary + 1, args.hidden)).to(**place))

    def run(self, chunk: int) -> float:
        import torch

        from learner.losses.diffro import DiffRO
        from learner.model.policy import PolicyOutput

        # One chunk for everything is exactly the naive form: nothing is recomputed, all logits and one-hots are held.
        rows = len(self.batch.targets) if chunk == NAIVE else chunk
        term = DiffRO(self.settings, self.reward_model, self.speech_ids, rows, seed=0)
        nothing = torch.zeros(len(self.batch.targets))
        output = PolicyOutput(nothing, nothing, [], self.hidden, self.output_layer)
        loss, _ = term.loss(output, self.batch, self.totals, sampler_temperature=1.0, step=1)
        loss.backward()
        self.hidden.grad = self.output_layer.weight.grad = None
        return float(loss.detach())


def _memory(args: argparse.Namespace, form: int) -> float:
    """Megabytes that one form needs on top of the loaded model, measured in a fresh process."""
    names = ("batch", "tokens", "labels", "vocabulary", "hidden", "reward_hidden", "reward_layers", "noise")
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    options = ("--memory-of", str(form))
    return meter.in_a_process(__file__, options, args, (*names, "threads", "dtype"), environment)


def _peak_growth(args: argparse.Namespace, form: int) -> float:
    case = Case(args)
    # One small step first: lazily loaded kernels and thread pools are not the form's memory.
    Case(argparse.Namespace(**{**vars(args), "batch": 1, "tokens": 30, "labels": 3, "vocabulary": 50})).run(form)
    return meter.peak_growth(partial(case.run, form), args.device)


if __name__ == "__main__":
    main()
