"""What a publication costs at the size of a real model, stage by stage, as a Markdown table.

    python -m benchmarks.weight_sync                          # the shape of Qwen3-ASR-0.6B, random weights, bfloat16
    python -m benchmarks.weight_sync --hidden 2048            # ... of 1.7B
    python -m benchmarks.weight_sync --model folder --repeats 5 --receivers 1 2 4 8
    python -m benchmarks.weight_sync --lora-rank 16           # a random adapter alone, without a learner
    python -m benchmarks.weight_sync --digests                # both kinds of digests alone, on one core and on a GPU

A learner rank and an engine in this process, the node's shared memory between them, as in a run on one machine, or with
`--store` Ray's object store, as in a run on several: all of the code is the run's own. The sender's seconds are also
measured with several receivers of the same buckets from the object store.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rollout.config import EngineConfig
from rollout.environment import engine_environment

os.environ.update(engine_environment(EngineConfig()), VLLM_ALLOW_INSECURE_SERIALIZATION="1")

import ray
import torch

from benchmarks.real_size import AUDIO, text_shape
from cluster.config.schema import PublishConfig
from cluster.training.publish import make_probes
from learner.components.transport import NOBODY, Receivers
from learner.config import LearnerConfig
from learner.rank import LearnerRank
from learner.spec import RankSpec
from rollout.engine.args import LORA_MODULES
from rollout.engine.engine import RolloutEngine
from rollout.weights.publication import load, receive_adapter
from rollout.weights.staging import staged
from speech.families import load_family
from speech.runtime.device_digest import DeviceDigest, draw_seeds
from speech.runtime.shared_weights import Bucket, SharedBucket
from speech.runtime.weights import AdapterBucket, Probe, tensor_digest
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

CONFIG = EngineConfig(dtype="bfloat16", max_model_len=256, kv_cache_gb=0.25, update_timeout_s=600.0)
Stages = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint (random weights, 0.6B)")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the random one; 2048: 1.7B (1024)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bucket-mb", type=int, default=PublishConfig().bucket_mb)
    parser.add_argument("--store", action="store_true", help="through the object store")
    parser.add_argument("--receivers", type=int, nargs="*", default=[1], help="of the sender's buckets (1)")
    parser.add_argument("--lora-rank", type=int, default=0, help="an adapter of this rank in the place of full weights")
    parser.add_argument("--digests", action="store_true", help="measure nothing but digests")
    args = parser.parse_args()
    if args.digests:
        measure_digests(args.repeats)
        return
    with tempfile.TemporaryDirectory() as temporary:
        model = args.model or Path(temporary, "model")
        if not model.exists():
            write_checkpoint(
                model,
                dtype=torch.bfloat16,
                text=text_shape(args.hidden),
                audio=AUDIO | {"output_dim": args.hidden},
                scale=1.0,
            )
        with asyncio.Runner() as runner:
            if args.lora_rank:
                runner.run(measure_adapter(model, args))
            else:
                runner.run(measure(model, args, Path(temporary)))


async def measure(model: Path, args: argparse.Namespace, folder: Path) -> None:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    rank = learner_rank(model, folder / "meet")
    engine = Engine(load_family(model), CONFIG)
    await engine.start(None)
    await engine._live().collective_rpc(time_worker)  # type: ignore[arg-type]
    stages: Stages = defaultdict(list)
    for version in range(args.repeats + 1):
        refs, size, tensors = send(rank, args.bucket_mb * 2**20, stages, args.store)
        if version == 0:
            print(f"{size / 1e9:.2f} GB in {tensors} tensors and {len(refs)} buckets\n")
        probe = timed(stages, "learner: probes", lambda v=version: probes_of(rank, v))  # type: ignore[misc]
        await engine.take(version, refs, probe, stages)
        if version == 0:
            stages.clear()  # caches and allocators are warm after it
    show(stages)
    engine.shutdown()
    if args.receivers:
        print("\n| receivers | sender, s | until all have the buckets, s |\n|--:|--:|--:|")
    for count in args.receivers:
        own: Stages = defaultdict(list)
        actors = [Receiver.remote() for _ in range(count)]
        ray.get([actor.receive.remote([]) for actor in actors])
        for _ in range(args.repeats):
            refs, _, _ = send(rank, args.bucket_mb * 2**20, own, store=True)
            timed(own, "receive", lambda r=refs, a=actors: ray.get([actor.receive.remote(r) for actor in a]))  # type: ignore[misc]
        sender = [sum(v) for v in zip(*(s for n, s in own.items() if n != "receive" and n[0] != " "), strict=True)]
        print(f"| {count} | {statistics.median(sender):.2f} | {statistics.median(own['receive']):.2f} |")
        for actor in actors:
            ray.kill(actor)


async def measure_adapter(model: Path, args: argparse.Namespace) -> None:
    """Random matrices on all modules that can have them; the probe's answers are not compared."""
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    engine = Engine(load_family(model), replace(CONFIG, lora_rank=args.lora_rank))
    await engine.start(None)
    rank, tensors = args.lora_rank, {}
    for name, shape in engine._shapes.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in LORA_MODULES:
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, shape[1]) * 0.01
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(shape[0], rank) * 0.01
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": LORA_MODULES, "bias": "none"}
    print(f"{sum(t.nbytes for t in tensors.values()) / 1e6:.1f} MB in {len(tensors)} tensors\n")
    draws = torch.randint(0, 300, (2, 48), generator=torch.Generator().manual_seed(0))
    probe = Probe(tuple(map(tuple, draws.tolist())), (), 0.0, 0.0)
    stages: Stages = defaultdict(list)
    for version in range(args.repeats + 1):
        bucket = timed(stages, "learner: digests", lambda: AdapterBucket.pack(tensors, config))
        ref = timed(stages, "object store: put", lambda b=bucket: ray.put(b))  # type: ignore[misc]
        await engine.take(version, [ref], probe, stages)
        if version == 0:
            stages.clear()
    show(stages)
    engine.shutdown()


def measure_digests(repeats: int) -> None:
    """Of one matrix of 268 MB in bfloat16, in turn."""
    torch.set_num_threads(1)
    matrix = torch.randn(2**13, 2**14).bfloat16()
    on_cpu = DeviceDigest(draw_seeds(), "cpu")
    ways: dict[str, Callable[[], Any]] = {
        "BLAKE3, one core": lambda: tensor_digest(matrix),
        "`DeviceDigest`, one core": lambda: on_cpu(matrix),
    }
    if torch.cuda.is_available():
        there, on_gpu = matrix.cuda(), DeviceDigest(draw_seeds(), "cuda")
        ways["`DeviceDigest`, GPU"] = lambda: on_gpu(there)
    seconds: Stages = defaultdict(list)
    for _ in range(repeats + 1):
        for name, way in ways.items():
            timed(seconds, name, way)
    print("| digest | GB/s, median (range) |\n|---|--:|")
    for name, values in seconds.items():
        rates = [matrix.nbytes / 1e9 / value for value in values[1:]]
        print(f"| {name} | {statistics.median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f}) |")


def show(stages: Stages) -> None:
    print("| stage | seconds, median (range) |\n|---|--:|")
    for name, seconds in stages.items():
        print(f"| {name} | {statistics.median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f}) |")
    whole = [
        sum(values) for values in zip(*(s for name, s in stages.items() if not name.startswith("  ")), strict=True)
    ]
    print(f"| whole | {statistics.median(whole):.3f} ({min(whole):.3f}–{max(whole):.3f}) |")


@ray.remote(num_cpus=0)
class Receiver:
    def receive(self, refs: list[ray.ObjectRef]) -> int:
        return sum(tensor.nbytes for ref in refs for tensor in ray.get(ref).tensors.values())


def learner_rank(model: Path, meeting: Path) -> LearnerRank:
    config = LearnerConfig(threads=2, train=["language_model"])
    spec = RankSpec(str(model), None, "grpo", config, 1.0, 0, (0,), 1, 0.0, 1)
    return LearnerRank(spec, 0, 1, f"file://{meeting}")


def send(rank: LearnerRank, bucket_bytes: int, stages: Stages, store: bool) -> tuple[list[ray.ObjectRef], int, int]:
    """All buckets into shared memory, or into the object store; their references, bytes, and number of tensors."""
    begun, putting = time.monotonic(), 0.0
    refs, size, tensors = [], 0, 0
    node = ray.get_runtime_context().get_node_id()
    receivers = NOBODY if store else Receivers({node})
    for bucket in rank.weight_buckets(torch.bfloat16, bucket_bytes, receivers, node):
        size, tensors = size + sum(2 * math.prod(s) for s in bucket.shapes.values()), tensors + len(bucket.shapes)
        before = time.monotonic()
        refs.append(ray.put(bucket))
        putting += time.monotonic() - before
    what = "copy, digests" if store else "digests, write to shared memory"
    stages[f"learner: cast, gather, {what}"].append(time.monotonic() - begun - putting)
    sample = (bucket.read() if isinstance(bucket, SharedBucket) else bucket).tensors
    before = time.monotonic()
    for tensor in sample.values():
        tensor_digest(tensor)
    digests = (time.monotonic() - before) * size / sum(t.nbytes for t in sample.values())
    stages["  of these digests, from the last bucket"].append(digests)
    stages["object store: put"].append(putting)
    return refs, size, tensors


def probes_of(rank: LearnerRank, version: int) -> Probe:
    class Gang:
        def probe_logprobs(self, sequences: Any, published: str, compute: str) -> list[float]:
            return rank.probe_logprobs(sequences, getattr(torch, published), getattr(torch, compute))

    return make_probes(version, Gang(), CONFIG, PublishConfig(), 300, None)[0]  # type: ignore[arg-type]


def timed(stages: Stages, name: str, work: Callable[[], Any]) -> Any:
    begun = time.monotonic()
    result = work()
    stages[name].append(time.monotonic() - begun)
    return result


class Engine(RolloutEngine):
    async def take(self, version: int, refs: list[ray.ObjectRef], probe: Probe, stages: Stages) -> None:
        """What `update_weights` does, with a clock."""

        def buckets() -> Iterator[Bucket]:
            for ref in refs:
                yield ray.get(ref)

        clock = time.monotonic()
        async with staged(buckets(), self._shapes, 600.0, self._config.lora_rank) as weights:
            stages["engine: get, stage"].append(time.monotonic() - clock)
            clock = time.monotonic()
            if weights.adapter is not None:
                await receive_adapter(self._live(), weights, 600.0)
                stages["engine: verify, before the pause"].append(time.monotonic() - clock)
                clock = time.monotonic()
            await self._live().pause_generation(mode="wait", clear_cache=False)
            await load(self._live(), version, weights, 600.0)
            what = "verify, load" if weights.adapter is None else "load"
            stages[f"engine: {what}, compare, drop caches"].append(time.monotonic() - clock)
            if weights.adapter is None:
                (worker,) = await self._live().collective_rpc(worker_times)  # type: ignore[arg-type]
                for name, seconds in worker.items():
                    stages[f"  {name}"].append(seconds)
            await self._live().resume_generation()
        clock = time.monotonic()
        await asyncio.gather(*(self.probe(ids) for ids in probe.sequences))
        stages["engine: probe"].append(time.monotonic() - clock)


def time_worker(worker: Any) -> None:
    """Put a clock around what `receive_weights` calls."""
    import time

    from rollout.weights import transfer

    worker.times = {}
    model = worker.get_model()

    def clocked(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                worker.times[name] = worker.times.get(name, 0.0) + time.monotonic() - begun

        return call

    transfer.tensor_digest = clocked("digests", transfer.tensor_digest)
    transfer.check_held = clocked("comparison with what is held", transfer.check_held)
    model.load_weights = clocked("vLLM's reload", model.load_weights)


def worker_times(worker: Any) -> dict[str, float]:
    times, worker.times = dict(worker.times), {}
    return times


if __name__ == "__main__":
    main()
