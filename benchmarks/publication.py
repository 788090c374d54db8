"""How often a sound publication is refused, and how often a wrong one is accepted, as a Markdown table.

    python benchmarks/publication.py assets/asr_demo --dtype bfloat16
    python benchmarks/publication.py runs/a/checkpoints/step-000030/hf --older runs/a/checkpoints/step-000020/hf
    python benchmarks/publication.py --random 28 512 --versions 3

A real engine in this process is given each kind of weights in turn and answers the probes of many publications. The
*probe* column counts those that `compare` refuses, with the comparison of what the engine holds switched off; *held*
says whether that comparison (`check_held`) refuses the weights, where the fault is the engine's. `--older` is what a
stale part has kept; by default every weight is 1e-3 to one side of the model's own. `--random` is a model with the form
of Qwen3 and random weights, sharp attention and unequal norms, of so many layers and that width.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rollout.config import EngineConfig
from rollout.environment import engine_environment

os.environ.update(engine_environment(EngineConfig(threads=1)), VLLM_ALLOW_INSECURE_SERIALIZATION="1")

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from cluster.config.schema import PublishConfig
from cluster.training.publish import Proof, make_probes
from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import pack
from learner.model import attention
from learner.model.policy import Policy
from learner.model.twin import PolicyTwin
from rollout.engine.engine import RolloutEngine
from rollout.errors import PublicationError
from rollout.weights.publication import compare, load
from rollout.weights.staging import staged
from speech.families import load_family
from speech.records import PromptLayout
from speech.runtime.weights import Probe, WeightBucket

Tensors = Mapping[str, torch.Tensor]
HEAD, NORM = "lm_head.weight", "model.norm.weight"
KEY_NORMS = tuple(f"model.layers.{layer}.self_attn.k_norm.weight" for layer in (0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--older", type=Path)
    parser.add_argument("--random", type=int, nargs=2, metavar=("LAYERS", "HIDDEN"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--versions", type=int, default=20, help="publications, each with two probes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = random_model(*options.random) if options.random else read_model(options.model)
    new = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    older = older_weights(new) if options.older is None else dict(read_model(options.older).named_parameters())
    with asyncio.Runner() as runner:
        runner.run(measure(model, new, older, options.dtype, options.versions))


def read_model(folder: Path) -> PreTrainedModel:
    return load_family(folder, None).load_language_model()


def random_model(layers: int, hidden: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=128,
        vocab_size=16384,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                sharp = 2.0 if "q_norm" in name or "k_norm" in name else 1.0
                parameter.uniform_(0.5 * sharp, 1.5 * sharp)
            elif "embed" in name:
                parameter.normal_(std=3.0 / hidden**0.5)  # logits with a deviation of about 3
    return model


def older_weights(new: Tensors) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: t - 1e-3 * (torch.rand(t.shape, generator=generator) - 0.5).sign() for n, t in new.items()}


class LocalLearner:
    """As `LearnerGroup`, for the only thing that `make_probes` asks of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self.twin = PolicyTwin(Policy(model))
        self.weights: Tensors = {}

    def probe_logprobs(self, sequences: Iterable[tuple[int, ...]], published: str, compute: str) -> list[float]:
        groups = [TrainGroup(PromptLayout(ids[:1], 0, 0), (Sample(ids[1:], (), 0.0),), audio=-1) for ids in sequences]
        types = getattr(torch, published), getattr(torch, compute)
        return self.twin.logprobs(pack(groups), self.weights.items(), *types, 512).tolist()


async def measure(model: PreTrainedModel, new: Tensors, older: Tensors, dtype: Any, versions: int) -> None:
    config = EngineConfig(threads=1, dtype=dtype, max_model_len=256, max_num_batched_tokens=4096, kv_cache_gb=0.25)
    family: Any = SimpleNamespace(
        allowed_token_ids=None, stop_token_ids=(), write_engine_model=lambda folder: model.save_pretrained(folder)
    )
    engine = Engine(family, config)
    await engine.start()
    learner: Any = LocalLearner(model)
    vocabulary = model.config.vocab_size

    def probes_of(version: int, weights: Tensors, before: Proof | None = None) -> tuple[Probe, ...]:
        learner.weights = weights
        return make_probes(version, learner, config, PublishConfig(), vocabulary, before)

    probes = []
    for version in range(versions):
        before = Proof(0.0, 0.0, probes_of(-1 - version, older))
        probes += probes_of(version, new, before)
    print(f"{dtype}: noise {min(p.noise for p in probes):.3g} to {max(p.noise for p in probes):.3g} nats")
    print("| the engine holds | gap / noise, mean (lowest–highest) | probe refuses | held |")
    print("|---|---|---|---|")
    sound = {name: tensor.to(getattr(torch, dtype)) for name, tensor in new.items()}
    stale = {name: tensor.to(getattr(torch, dtype)) for name, tensor in older.items()}
    swapped = sound | dict(zip(KEY_NORMS, (sound[name] for name in reversed(KEY_NORMS)), strict=True))
    rows: dict[str, tuple[Tensors, Callable[[Any], None] | None]] = {
        "what was sent": (sound, None),
        "key norms of two layers swapped by the sender": (swapped, None),
        "key norms of two layers swapped by the engine": (sound, swap_key_norms),
        "all of the older weights": (stale, None),
        "the older head": (sound, keep_head),
        "the older final norm": (sound, forget_norm),
    }
    for name, (tensors, fault) in rows.items():
        await engine.load(stale, None)
        held = await engine.load(tensors, fault)
        gaps, refused = await engine.judge(probes)
        ratios = [gap / probe.noise for gap, probe in zip(gaps, probes, strict=True)]
        mean = sum(ratios) / len(ratios)
        print(f"| {name} | {mean:.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | {refused} of {len(probes)} | {held} |")
    engine.shutdown()


class Engine(RolloutEngine):
    """An engine whose weights may be wrong."""

    async def load(self, tensors: Tensors, fault: Callable[[Any], None] | None) -> str:
        """Load them although they are wrong; what the comparison of what the engine holds says of that."""
        verdicts = []
        for prepare in (None, ignore_held):
            for change in (mend, fault, prepare):
                if change is not None:
                    await self._live().collective_rpc(change)  # type: ignore[arg-type]
            bucket = WeightBucket.of(tensors)
            async with staged([bucket], self._shapes, 600.0) as weights:
                await self._live().pause_generation(mode="wait", clear_cache=False)
                try:
                    await load(self._live(), 1, weights, 600.0)
                    verdicts.append("accepts" if fault else "–")
                except Exception as error:  # noqa: BLE001 - vLLM raises anything
                    verdicts.append("refuses" if "does not hold" in str(error) else str(error))
                await self._live().resume_generation()
        await self._live().collective_rpc(mend)  # type: ignore[arg-type]
        return verdicts[0]

    async def judge(self, probes: Iterable[Probe]) -> tuple[list[float], int]:
        gaps, refused = [], 0
        for probe in probes:
            answers = await asyncio.gather(*(self.probe(ids) for ids in probe.sequences))
            values = [value for answer in answers for value in answer]
            gaps.append(compare(replace(probe, tolerance=float("inf"), previous=()), values))
            try:
                compare(probe, values)
            except PublicationError:
                refused += 1
        return gaps, refused


def mend(worker: Any) -> None:
    from rollout.weights import transfer

    model = worker.get_model()
    if not hasattr(model, "sound"):
        model.sound = model.load_weights, transfer.check_held, transfer.refresh_packed_heads
    model.load_weights, transfer.check_held, transfer.refresh_packed_heads = model.sound


def ignore_held(worker: Any) -> None:
    from rollout.weights import transfer

    transfer.check_held = lambda model, names, read: None


def keep_head(worker: Any) -> None:
    from rollout.weights import transfer

    model = worker.get_model()
    transfer.refresh_packed_heads = lambda model: None
    model.load_weights = lambda weights: model.sound[0]((n, t) for n, t in weights if n != HEAD)


def forget_norm(worker: Any) -> None:
    model = worker.get_model()
    model.load_weights = lambda weights: model.sound[0]((n, t) for n, t in weights if n != NORM)


def swap_key_norms(worker: Any) -> None:
    model = worker.get_model()
    other = dict(zip(KEY_NORMS, reversed(KEY_NORMS), strict=True))
    model.load_weights = lambda weights: model.sound[0]((other.get(n, n), t) for n, t in weights)


if __name__ == "__main__":
    main()
