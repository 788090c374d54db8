"""The loop's schedule with *simulated* actors: order, bound and account, whatever ends first, wherever it is stopped.

The actors here are fakes that sample nothing; the real ones are in tests/end_to_end/test_overlap.py.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import RunConfig, load_config
from cluster.data.prompts import PromptSource, derived_seed
from cluster.monitoring.phases import PhaseTimer
from cluster.training import trainer as loop
from cluster.training.batch import Step
from cluster.training.rollouts import RolloutBatch, Rollouts
from cluster.training.trainer import Trainer
from learner.spec import StepResult
from rollout.actors import EncodedRef
from speech.records import Group, Prompt, PromptLayout, Reward, Trajectory, Utterance
from tests.waiting import until

LAYOUT = PromptLayout((1, 0, 2), 1, 1)


def configuration(staleness: int, steps: int, *more: str) -> RunConfig:
    overrides = ["name=x", "model.path=m", "data.train=t", "data.batch_prompts=3", "learner.loss.importance_cap=2"]
    return load_config(None, [*overrides, f"staleness={staleness}", f"steps={steps}", *more])


def length(prompt: Prompt) -> int:
    """What the simulated policy answers: a length that depends on the prompt alone, as a greedy policy's would."""
    return 1 + derived_seed("length", prompt.id) % 40


class SimulatedGeneration:
    def __init__(self, fleet: SimulatedSystem, prompts: Sequence[Prompt]) -> None:
        self.fleet, self.prompts, self.version = fleet, prompts, fleet.version
        self.cancelled = threading.Event()
        self.go = threading.Event()
        if not fleet.held:
            self.go.set()

    def result(self, timeout: float | None) -> list[Group]:
        while not self.go.wait(0.01):
            if self.cancelled.is_set():
                raise RuntimeError("cancelled")
        return [
            Group(prompt, LAYOUT, tuple(self.trajectory(prompt, i) for i in range(2)), 1.0, 0.5)
            for prompt in self.prompts
        ]

    def trajectory(self, prompt: Prompt, index: int) -> Trajectory:
        tokens = (7,) * length(prompt)
        return Trajectory(
            prompt_id=prompt.id,
            index=index,
            token_ids=tokens,
            logprobs=(-0.5,) * len(tokens),
            version_first=self.version - self.fleet.lag,
            version_last=self.version,
            finish_reason="stop",
            seed=prompt.seed + index,
            text="",
        )

    def cancel(self) -> None:
        self.cancelled.set()


class SimulatedSystem:
    """Engines, encoders, rewards and learner of a run in one object, without any work in them."""

    def __init__(self, lag: int = 0, fail: str = "") -> None:
        self.version = 0
        self.lag, self.fail = lag, fail
        self.held = False
        self.submitted: list[list[Prompt]] = []
        self.generations: list[SimulatedGeneration] = []
        self.fleet = self.encoders = self.rewards = self.learner = self
        self.family = SimpleNamespace(tokenizer=range(10))

    def encode(self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool) -> list[EncodedRef]:
        return [EncodedRef(None, 1.0, LAYOUT) for _ in utterances]  # type: ignore[arg-type]

    def submit(self, prompts: Sequence[Prompt], audio: Any, sampling: Any) -> SimulatedGeneration:
        self.submitted.append(list(prompts))
        self.generations.append(SimulatedGeneration(self, prompts))
        return self.generations[-1]

    def learner_blocked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def score(self, groups: Sequence[Group]) -> list[Group]:
        if self.fail == "score":
            raise RuntimeError("the judge is gone")
        return [replace(group, rewards=(Reward(total=0.0), Reward(total=1.0))) for group in groups]

    def update(self, step: int, groups: Sequence[Any], replay: Any, audio: Any) -> StepResult:
        return StepResult({}, {})


@pytest.fixture(autouse=True)
def simulated_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(version: int, learner: Any, fleet: SimulatedSystem, *_: Any) -> float:
        fleet.version = version
        return 0.0

    monkeypatch.setattr(loop, "publish", publish)


def trainer(config: RunConfig, system: SimulatedSystem, utterances: int = 7) -> Trainer:
    data = [Utterance(id=f"u{i}", audio=f"/u{i}.wav", text="x") for i in range(utterances)]
    return Trainer(config, system, PromptSource(data, 0, config.data.batch_prompts), None, PhaseTimer())  # type: ignore[arg-type]


@settings(max_examples=25)
@given(staleness=st.integers(0, 3), stops=st.lists(st.integers(1, 4), max_size=3), steps=st.integers(1, 12))
def test_every_prompt_is_trained_once_in_order_and_within_the_bound(
    staleness: int, stops: list[int], steps: int
) -> None:
    """Stopped after some steps and resumed from what a checkpoint holds, several times."""
    config = configuration(staleness, steps)
    trained: list[str] = []
    lengths: Counter[int] = Counter()
    saved: tuple[int, dict[str, Any], list[list[tuple[int, int]]]] | None = None
    for stop in [*stops, steps]:
        system = SimulatedSystem()
        run = trainer(config, system)
        if saved is not None:
            run.step = run.version = system.version = saved[0]
            run.source.restore(saved[1])
            run.waiting.extend(run.source.at(places) for places in saved[2])
        end = run.step + stop

        def after_step(step: Step, run: Trainer = run, end: int = end) -> bool:
            trained.extend(step.batch.selection.trained)
            for group in step.batch.groups:
                lengths.update(len(t.token_ids) for t in group.trajectories)
                for t in group.trajectories:
                    assert 0 <= step.version - 1 - t.version_first <= staleness
            return run.step < end

        run.run(after_step)
        assert len(run.in_flight()) == min(staleness, steps - run.step)
        saved = (run.step, run.source.state(), [[(p.epoch, p.position) for p in w] for w in run.in_flight()])
    undisturbed = PromptSource([Utterance(id=f"u{i}", audio="", text="") for i in range(7)], 0, 3).take(3 * steps)
    assert trained == [prompt.id for prompt in undisturbed], "each once, in the data's order, short or long"
    expected: Counter[int] = Counter()
    for prompt in undisturbed:
        expected.update([length(prompt)] * 2)
    assert lengths == expected


def test_the_next_windows_start_before_the_learner_does() -> None:
    system = SimulatedSystem()
    run = trainer(configuration(2, 9), system)
    seen = []

    def after_step(step: Step) -> bool:
        seen.append(len(run.in_flight()))
        return step.number < 4

    run.run(after_step)
    assert seen == [2, 2, 2, 2]
    assert len(system.submitted) == 6


def test_stopping_cancels_what_is_being_sampled() -> None:
    system = SimulatedSystem()
    run = trainer(configuration(1, 9), system)

    def after_step(step: Step) -> bool:
        system.held = True  # from now on samples take for ever
        while len(system.generations) < step.number + 1:
            time.sleep(0.001)
        return step.number < 2

    run.run(after_step)
    assert any(generation.cancelled.is_set() for generation in system.generations)
    assert [thread.name for thread in threading.enumerate() if thread.name in ("encode", "score")] == []
    assert len(run.in_flight()) == 1


def test_a_sample_beyond_the_bound_is_rejected_with_its_age() -> None:
    """Only a mistake elsewhere could bring one here; the check is the last before the learner."""
    run = trainer(configuration(1, 4), SimulatedSystem(lag=2))
    entries = []

    def after_step(step: Step) -> bool:
        entries.extend(step.ledger)
        return True

    run.run(after_step)
    assert {entry.outcome for entry in entries} == {"rejected"}
    assert {entry.reason for entry in entries} == {
        "stale: 2 versions behind, with a bound of 1",
        "stale: 3 versions behind, with a bound of 1",
    }


def test_an_error_beside_the_learner_comes_out_where_its_window_is_awaited() -> None:
    run = trainer(configuration(1, 4), SimulatedSystem(fail="score"))
    with pytest.raises(RuntimeError, match="the judge is gone") as caught:
        run.run(lambda step: True)
    assert caught.value.__notes__[0] == "in phase `reward` of step 1"


def test_closing_cancels_every_future_and_leaves_no_batch_waiting() -> None:
    """Of several batches that are sampled at once, one ends while the others are cancelled."""
    system = SimulatedSystem()
    system.held = True
    rollouts = Rollouts(configuration(staleness=3, steps=9), system, PhaseTimer())  # type: ignore[arg-type]
    prompts = PromptSource([Utterance(id=f"u{i}", audio="/u.wav", text="x") for i in range(9)], 0, 3)
    batches = [RolloutBatch(number, prompts.next_batch(), [()] * 3) for number in range(3)]
    for batch in batches:
        rollouts.start(batch)
    until(lambda: len(system.generations) == 3)
    withdraw = system.generations[0].cancel

    def first_ends_meanwhile() -> None:
        withdraw()
        until(lambda: batches[0].scored.done())

    system.generations[0].cancel = first_ends_meanwhile  # type: ignore[method-assign]
    rollouts.close()
    assert all(generation.cancelled.is_set() for generation in system.generations)
    for batch in batches:
        with pytest.raises((RuntimeError, CancelledError)):
            batch.scored.result(timeout=10)


def test_a_batch_that_waits_to_be_encoded_is_cancelled_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    system, encoding, gate = SimulatedSystem(), threading.Event(), threading.Event()
    encode = system.encode

    def slow(*arguments: Any, **options: Any) -> list[EncodedRef]:
        encoding.set()
        gate.wait(10)
        return encode(*arguments, **options)

    monkeypatch.setattr(system, "encode", slow)
    rollouts = Rollouts(configuration(staleness=3, steps=9), system, PhaseTimer())  # type: ignore[arg-type]
    prompts = PromptSource([Utterance(id=f"u{i}", audio="/u.wav", text="x") for i in range(9)], 0, 3)
    batches = [RolloutBatch(number, prompts.next_batch(), [()] * 3) for number in range(2)]
    for batch in batches:
        rollouts.start(batch)
    assert encoding.wait(10)
    closing = threading.Thread(target=rollouts.close)
    closing.start()
    until(lambda: rollouts._closed)
    gate.set()
    closing.join(20)
    assert not closing.is_alive() and all(batch.scored.cancelled() for batch in batches)
    assert system.generations[0].cancelled.is_set(), "what was submitted after the others had been cancelled"
