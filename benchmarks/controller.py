"""The controller's own cost with 1,000 SIMULATED engines: milliseconds per trajectory, and memory step by step.

    python benchmarks/controller.py                          # 1,000 engines, 100,000 trajectories
    python benchmarks/controller.py --engines 100 --steps 4

The actors are simulated: engines, encoders, rewards and learner answer at once and compute nothing. Everything else is
the real driver of `speechrl train`: admission, loop, threads, selection and advantages, division among learner ranks,
metrics, rollout files, ledger, timeline, TensorBoard. What would cross a process boundary is pickled and unpickled, as
Ray does on the driver's side. Time is the process's CPU time, less what the simulated actors took.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from cluster.actors.remote import contiguous
from cluster.config import load_config
from cluster.fleet.fleet import FleetCounts
from cluster.monitoring.logs import RunLog
from cluster.monitoring.memory import PeakMemory
from cluster.monitoring.progress import TrainingDisplay
from cluster.runs.folder import RunFolder
from cluster.training.policy_run import PolicyRun
from learner.batches.batch import TrainGroup
from learner.batches.plan import plan_updates
from learner.spec import StepResult
from rollout.actors import EncodedRef
from rollout.config import EngineConfig
from rollout.engine.stats import EngineStats
from speech.manifests import Manifest
from speech.records import Group, Prompt, PromptLayout, Reward, Trajectory, Utterance
from speech.runtime.spans import Span

LAYOUT = PromptLayout(tuple(range(60)), 10, 45)
TOKENS = 24
WORDS = "turn on the light in the kitchen and play some quiet music please".split()


@dataclass
class SimulatedActors:
    """Engines, encoders and rewards. `seconds` is what they took themselves, which is not the driver's."""

    engines: int
    group_size: int
    ranks: int
    seconds: float = 0.0
    version: int = 0
    retried: int = 0
    config: EngineConfig = field(default_factory=EngineConfig)
    listener: None = None
    lethal: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.encoders = self.rewards = self
        self.fleet = SimulatedFleet(self)
        self.learner = SimulatedLearner(self.ranks)
        self.family = SimpleNamespace(tokenizer=range(1000))

    def answer(self, work: Callable[[], Any]) -> bytes:
        """What an actor sends, made at its own expense."""
        started = time.thread_time()
        data = pickle.dumps(work())
        self.seconds += time.thread_time() - started
        return data

    def encode(self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool) -> list[EncodedRef]:
        pickle.dumps(utterances)
        ref: Any = None
        encoded: list[EncodedRef] = load(self.answer(lambda: [EncodedRef(ref, 2.0, LAYOUT) for _ in utterances]))
        return encoded

    def submit(self, prompts: Sequence[Prompt], audio: Sequence[EncodedRef], sampling: Any) -> Any:
        shares = [share for share in contiguous(list(zip(prompts, audio, strict=True)), self.engines) if share]
        for share in shares:
            pickle.dumps(share)
        return SimulatedRollout(
            [self.answer(lambda share=share: [self.group(p) for p, _ in share]) for share in shares]
        )

    def group(self, prompt: Prompt) -> Group:
        draw = random.Random(prompt.seed)
        trajectories = tuple(
            Trajectory(
                prompt_id=prompt.id,
                index=i,
                token_ids=tuple(draw.choices(range(1000), k=TOKENS)),
                logprobs=tuple(draw.random() for _ in range(TOKENS)),
                version_first=self.version,
                version_last=self.version,
                finish_reason="stop",
                seed=prompt.seed + i,
                text=" ".join(draw.choices(WORDS, k=10)),
            )
            for i in range(self.group_size)
        )
        return Group(prompt, LAYOUT, trajectories, 2.0, 0.5)

    wanted = 4

    def shares(self, count: int) -> list[range]:
        size = -(-count // 16)
        return [range(count)[start : start + size] for start in range(0, count, size)]

    def score(self, groups: Sequence[Group], together: bool) -> list[Group]:
        pickle.dumps(groups)
        scored: list[Group] = load(self.answer(lambda: [_scored(group) for group in groups]))
        return scored

    def publish(self, version: int, *_: Any) -> float:
        self.version = version
        return 0.0

    def update(self, states: Any, timeout: float | None) -> None:
        """There is nothing before the language model to update."""

    def encoded_total(self) -> int:
        return 0

    def pool_sizes(self) -> dict[str, int]:
        return {}

    def rescale(self, *_: Any) -> None:
        """Pools keep their sizes."""

    def spans(self) -> dict[str, list[Span]]:
        now = time.time()
        return {f"engine {i}": [Span("generate", now - 1, now)] for i in range(self.engines)}


class SimulatedRollout:
    """Groups that come share by share of the engines."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = list(answers)
        self.sampled: dict[int, Group] = {}

    def first_of(self, parts: Sequence[range]) -> int:
        while True:
            for number, part in enumerate(parts):
                if all(place in self.sampled for place in part):
                    return number
            for group in load(self._answers.pop(0)):
                self.sampled[len(self.sampled)] = group

    def result(self, timeout: float | None) -> list[Group]:
        return [self.sampled[place] for place in sorted(self.sampled)]

    def cancel(self) -> None:
        pass


class SimulatedFleet:
    """The fleet's side of the simulated actors."""

    def __init__(self, actors: SimulatedActors) -> None:
        self.config, self.submit, self.publish, self._engines = (
            EngineConfig(),
            actors.submit,
            actors.publish,
            actors.engines,
        )
        self.sleeps = False

    def stats(self) -> EngineStats:
        return EngineStats()

    def counts(self) -> FleetCounts:
        return FleetCounts(self._engines, 0, 0, 0)

    def replicas(self) -> range:
        return range(self._engines)

    def learner_blocked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def engines_on(self) -> set[str]:
        return set()


class SimulatedLearner:
    """The division among ranks is the real one, and the driver's work."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.groups: list[TrainGroup] = []

    def begin(self, step: int, hold: bool) -> SimulatedLearner:
        self.groups = []
        return self

    def add(self, groups: Sequence[TrainGroup], audio: Mapping[int, Any]) -> None:
        self.groups += groups

    def finish(self, replay: Sequence[TrainGroup], audio: Mapping[int, Any]) -> StepResult:
        for share in plan_updates(self.groups, replay, 1, self.ranks):
            pickle.dumps(share)
        metrics = {"learner/logprob_gap": 1e-6, "learner/logprob_gap_max": 1e-5, "learner/entropy": 1.0}
        return StepResult(metrics, {group.audio: [1e-6] * len(group.samples) for group in self.groups})

    def publish(self, dtype: str, bucket_bytes: int, receivers: Any) -> list[Any]:
        return []

    def frontend_weights(self) -> dict[str, Any]:
        return {}

    def probe_logprobs(self, sequences: Sequence[tuple[int, ...]], published: str, compute: str) -> list[float]:
        return [-1.0 for ids in sequences for _ in ids[1:]]

    def save_in_background(self, folder: str, copy: bool) -> None:
        (Path(folder) / "hf").mkdir()

    def saved(self) -> bool:
        return True


def load(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 - made above


def _scored(group: Group) -> Group:
    rewards = tuple(
        Reward(
            total=t.logprobs[0], parts={"accuracy": t.logprobs[0], "hallucination": 0.0}, details={"accuracy/wer": 0.5}
        )
        for t in group.trajectories
    )
    return replace(group, rewards=rewards)


def resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=1250, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--staleness", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        run_controller(args, Path(runs))


def run_controller(args: argparse.Namespace, runs: Path) -> None:
    count = args.prompts * (args.steps + args.staleness)
    utterances = [Utterance(id=f"u{i}", audio=f"/a/u{i}.wav", text=" ".join(WORDS[:10])) for i in range(count)]
    settings = {"name": "controller", "model.path": "m", "data.train": "t", "runs_dir": runs, "steps": args.steps}
    settings |= {"data.batch_prompts": args.prompts, "sampling.group_size": args.group_size}
    settings |= {"staleness": args.staleness, "learner.loss.importance_cap": 2, "checkpoint.every": 1_000_000}
    config = load_config(None, [f"{key}={value}" for key, value in settings.items()])
    actors = SimulatedActors(args.engines, args.group_size, args.ranks)
    manifest = Manifest(tuple(utterances), (), "t", "jsonl")
    display = TrainingDisplay("controller", args.steps, console=Console(file=io.StringIO()))
    print(f"SIMULATED: {args.engines} engines, {args.group_size} samples of {TOKENS} tokens for each of {args.prompts}")
    print(f"prompts a step, staleness {args.staleness}, {args.ranks} learner ranks.\n")
    print("| step | trajectories | CPU of the driver, ms per trajectory | resident, MB |\n|--:|--:|--:|--:|")
    memory, own = [], []
    log = RunLog(Path(runs) / "controller.jsonl", "controller")
    with RunFolder(runs, "controller") as folder, PeakMemory() as peak, log, display:
        folder.open(config)
        folder.rewind(None)
        run = PolicyRun(config, actors, {"train": manifest}, folder, display, peak, log, {})  # type: ignore[arg-type]
        after_step = run._after_step
        last = [time.process_time(), actors.seconds]

        def noted(step: Any) -> bool:
            go_on = after_step(step)
            now = [time.process_time(), actors.seconds]
            own.append((now[0] - last[0]) - (now[1] - last[1]))
            memory.append(resident_mb())
            last[:] = [time.process_time(), actors.seconds]
            size = args.prompts * args.group_size
            print(
                f"| {step.number} | {step.number * size:,} | {1000 * own[-1] / size:.3f} | {memory[-1]:.0f} |",
                flush=True,
            )
            return go_on

        run._after_step = noted  # type: ignore[method-assign]
        run.execute(None)
        audit = folder.ledger.audit([u.id for u in utterances], 0)
    total = args.steps * args.prompts * args.group_size
    print(f"\n{total:,} trajectories, {1000 * sum(own) / total:.3f} ms of the driver's CPU time each; ", end="")
    print(f"memory {memory[len(memory) // 2 - 1]:.0f} MB half-way, {memory[-1]:.0f} MB at the end.")
    assert audit.trained + audit.rejected == args.steps * args.prompts and not audit.duplicates
    assert json.loads((runs / "controller" / "summary.json").read_text())["trajectories"] == total


if __name__ == "__main__":
    main()
