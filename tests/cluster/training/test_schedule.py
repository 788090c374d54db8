"""The loop's schedule with *simulated* actors: order, bound and account, whatever ends first, wherever it is stopped.

The actors here are fakes that sample nothing; the real ones are in tests/end_to_end/test_overlap.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
from cluster.data.rejections import Rejections
from cluster.monitoring.phases import PhaseTimer
from cluster.training import trainer as loop
from cluster.training.batch import Step
from cluster.training.publish import Proof
from cluster.training.resume import load_state_dict, state_dict
from cluster.training.rollouts import RolloutBatch, Rollouts
from cluster.training.trainer import Trainer
from learner.batches.batch import TrainGroup
from learner.spec import StepResult
from rollout.actors import EncodedRef
from speech.errors import InputError, UserError
from speech.records import BadUtterance, Group, Prompt, PromptLayout, Reward, Trajectory, Utterance
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
        self.sampled: dict[int, Group | BadUtterance] = {}
        self.cancelled = threading.Event()
        self.go = threading.Event()
        if not fleet.held:
            self.go.set()

    def first_of(self, parts: Sequence[range]) -> int:
        """The groups of the last part are there first."""
        self.sampled = dict(enumerate(self.result(None)))
        return len(parts) - 1

    def result(self, timeout: float | None) -> list[Group | BadUtterance]:
        while not self.go.wait(0.01):
            if self.cancelled.is_set():
                raise RuntimeError("cancelled")
        return [
            BadUtterance(prompt.utterance.id, "no engine can sample it", lethal=True)
            if prompt.utterance.id in self.fleet.deadly
            else Group(prompt, LAYOUT, tuple(self.trajectory(prompt, i) for i in range(2)), 1.0, 0.5)
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


class SimulatedUpdate:
    """`added`: the prompts that the learner has got, call by call."""

    def __init__(self, system: SimulatedSystem) -> None:
        self.system = system
        self.added: list[list[int]] = []

    def add(self, groups: Sequence[TrainGroup], audio: Mapping[int, Any]) -> None:
        assert all(group.audio in audio for group in groups)
        self.added.append([group.audio for group in groups])

    def finish(self, replay: Sequence[TrainGroup], audio: Mapping[int, Any]) -> StepResult:
        self.system.learn()
        return StepResult({}, {})


class SimulatedSystem:
    """Engines, encoders, rewards and learner of a run in one object, without any work in them.

    Utterances in `unreadable` cannot be encoded, those in `deadly` cannot be sampled, those in `unheard` get no reward.
    """

    def __init__(
        self,
        lag: int = 0,
        fail: str = "",
        unreadable: Collection[str] = (),
        deadly: Collection[str] = (),
        unheard: Collection[str] = (),
    ) -> None:
        self.unreadable, self.deadly, self.unheard = unreadable, deadly, unheard
        self.encoding: Callable[[], None] = lambda: None
        self.lethal: dict[str, str] = {}
        self.encoded: list[str] = []
        self.version = 0
        self.lag, self.fail = lag, fail
        self.held = False
        self.submitted: list[list[Prompt]] = []
        self.generations: list[SimulatedGeneration] = []
        self.updates: list[SimulatedUpdate] = []
        self.fleet = self.encoders = self.rewards = self.learner = self
        self.family = SimpleNamespace(tokenizer=range(10))

    def encode(
        self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool
    ) -> list[EncodedRef | BadUtterance]:
        self.encoding()
        self.encoded += [utterance.id for utterance in utterances]
        return [
            BadUtterance(u.id, "cannot be decoded") if u.id in self.unreadable else EncodedRef(None, 1.0, LAYOUT)  # type: ignore[arg-type]
            for u in utterances
        ]

    def submit(self, prompts: Sequence[Prompt], audio: Any, sampling: Any) -> SimulatedGeneration:
        self.submitted.append(list(prompts))
        self.generations.append(SimulatedGeneration(self, prompts))
        return self.generations[-1]

    def learner_blocked(self) -> AbstractContextManager[None]:
        return nullcontext()

    wanted = 2

    def shares(self, count: int) -> list[range]:
        return [range(start, min(start + 2, count)) for start in range(0, count, 2)]

    def score(self, groups: Sequence[Group], together: bool = False) -> list[Group]:
        assert together and len(groups) <= 2
        if self.fail == "score":
            raise RuntimeError("the judge is gone")
        lost = Reward(total=None, invalid="the judge died")
        return [
            replace(group, rewards=(lost, lost))
            if group.prompt.utterance.id in self.unheard
            else replace(group, rewards=(Reward(total=0.0), Reward(total=1.0)))
            for group in groups
        ]

    def begin(self, step: int, hold: bool) -> SimulatedUpdate:
        self.updates.append(SimulatedUpdate(self))
        return self.updates[-1]

    def learn(self) -> None:
        pass


@pytest.fixture(autouse=True)
def simulated_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(version: int, learner: Any, fleet: SimulatedSystem, *_: Any) -> Proof:
        fleet.version = version
        return Proof(gap=0.0, tolerance=1.0, probes=())

    monkeypatch.setattr(loop, "publish", publish)


def trainer(config: RunConfig, system: SimulatedSystem, utterances: int = 7) -> Trainer:
    data = [Utterance(id=f"u{i}", audio=f"/u{i}.wav", text="x") for i in range(utterances)]
    source, rejections = PromptSource(data, 0), Rejections(config.data)
    return Trainer(config, system, source, None, PhaseTimer(), rejections)  # type: ignore[arg-type]


def rollouts_of(run: Trainer) -> Rollouts:
    return Rollouts(run.config, run.system, run.timer, run.intake.fill)


@settings(max_examples=25)
@given(staleness=st.integers(0, 3), stops=st.lists(st.integers(1, 4), max_size=3), steps=st.integers(1, 12))
def test_every_prompt_is_trained_once_in_order_and_within_the_bound(
    staleness: int, stops: list[int], steps: int
) -> None:
    """Stopped after some steps and resumed from what a checkpoint holds, several times."""
    config = configuration(staleness, steps)
    trained: list[str] = []
    lengths: Counter[int] = Counter()
    saved: dict[str, Any] | None = None
    for stop in [*stops, steps]:
        system = SimulatedSystem()
        run = trainer(config, system)
        if saved is not None:
            load_state_dict(run, saved)
            system.version = run.version
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
        saved = json.loads(json.dumps(state_dict(run)))
    undisturbed = PromptSource([Utterance(id=f"u{i}", audio="", text="") for i in range(7)], 0).take(3 * steps)
    assert trained == [prompt.id for prompt in undisturbed], "each once, in the data's order, short or long"
    expected: Counter[int] = Counter()
    for prompt in undisturbed:
        expected.update([length(prompt)] * 2)
    assert lengths == expected


def test_groups_are_scored_before_the_others_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And come out in the order of their prompts, with what belongs to each."""
    system, gate = SimulatedSystem(deadly=["u1"]), threading.Event()
    scored: list[str] = []
    score = system.score

    def noting(groups: Sequence[Group], together: bool = False) -> list[Group]:
        scored.extend(group.prompt.utterance.id for group in groups)
        return score(groups, together)

    def first_of(self: SimulatedGeneration, parts: Sequence[range]) -> int:
        if len(parts) == 1:
            gate.wait(10)  # the last samples are late
        groups = self.result(None)
        self.sampled |= {place: groups[place] for place in parts[-1]}
        return len(parts) - 1

    monkeypatch.setattr(system, "score", noting)
    monkeypatch.setattr(SimulatedGeneration, "first_of", first_of)
    rollouts = rollouts_of(trainer(configuration(0, 9), system))
    batch = RolloutBatch(size=5, number=0)
    rollouts.start(batch)
    ids = [prompt.utterance.id for prompt in batch.prompts] if batch.filled.wait(10) else []
    early = [name for name in ids[2:] if name != "u1"]
    until(lambda: sorted(scored) == sorted(early))
    assert not batch.scored[0].done()
    gate.set()
    outcomes = [outcome for part in batch.scored for outcome in part.result(10)]
    assert [o.id if isinstance(o, BadUtterance) else o.prompt.utterance.id for o in outcomes] == ids
    assert {o.id for o in outcomes if isinstance(o, BadUtterance)} == {"u1"}
    assert all(o.rewards for o in outcomes if isinstance(o, Group))
    rollouts.close()


def test_the_learner_gets_groups_in_order_while_the_others_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part of five prompts is there first, and waits for the first; the middle one comes at the end."""
    system, gate = SimulatedSystem(), threading.Event()
    arrivals = iter([2, 0, 0])  # places among those that are awaited

    def first_of(self: SimulatedGeneration, parts: Sequence[range]) -> int:
        place = next(arrivals)
        if len(parts) == 1:
            gate.wait(10)
        self.sampled = dict(enumerate(self.result(None)))
        return place

    monkeypatch.setattr(SimulatedGeneration, "first_of", first_of)
    run = trainer(configuration(0, 1, "data.batch_prompts=5"), system)
    loop_thread = threading.Thread(target=run.run, args=(lambda step: True,))
    loop_thread.start()
    until(lambda: system.updates and system.updates[0].added == [[0, 1]])
    gate.set()
    loop_thread.join(10)
    assert system.updates[0].added == [[0, 1], [2, 3], [4]]


def test_an_advantage_over_the_batch_waits_for_the_whole_batch() -> None:
    system, settings = SimulatedSystem(), ("data.batch_prompts=5", "learner.advantage=reinforce_pp")
    trainer(configuration(0, 1, *settings), system).run(lambda step: True)
    assert system.updates[0].added == [[0, 1, 2, 3, 4]]


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
    rollouts = rollouts_of(trainer(configuration(staleness=3, steps=9), system))
    batches = [RolloutBatch(size=3, number=number) for number in range(3)]
    for batch in batches:
        rollouts.start(batch)
    until(lambda: len(system.generations) == 3)
    withdraw = system.generations[0].cancel

    def first_ends_meanwhile() -> None:
        withdraw()
        until(lambda: batches[0].scored[0].done())

    system.generations[0].cancel = first_ends_meanwhile  # type: ignore[method-assign]
    rollouts.close()
    assert all(generation.cancelled.is_set() for generation in system.generations)
    for batch in batches:
        with pytest.raises((RuntimeError, CancelledError)):
            batch.scored[0].result(timeout=10)


def test_a_batch_that_waits_to_be_encoded_is_cancelled_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    system, encoding, gate = SimulatedSystem(), threading.Event(), threading.Event()
    encode = system.encode

    def slow(*arguments: Any, **options: Any) -> list[EncodedRef]:
        encoding.set()
        gate.wait(10)
        return encode(*arguments, **options)

    monkeypatch.setattr(system, "encode", slow)
    rollouts = rollouts_of(trainer(configuration(staleness=3, steps=9), system))
    batches = [RolloutBatch(size=3, number=number) for number in range(2)]
    for batch in batches:
        rollouts.start(batch)
    assert encoding.wait(10)
    closing = threading.Thread(target=rollouts.close)
    closing.start()
    until(lambda: rollouts._closed)
    gate.set()
    closing.join(20)
    assert not closing.is_alive() and all(part.cancelled() for batch in batches for part in batch.scored)
    assert system.generations[0].cancelled.is_set(), "what was submitted after the others had been cancelled"


GOOD = ("u0", "u2", "u3", "u5", "u6")
BAD = ("u1", "u4")


def trained_by(run: Trainer, steps: int) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """What each step trained, and what was rejected, in the next steps of a run."""
    trained: list[list[str]] = []
    rejected: list[tuple[str, str]] = []

    def after_step(step: Step) -> bool:
        trained.append(step.batch.selection.trained)
        rejected.extend((entry.prompt_id, entry.reason) for entry in step.ledger if entry.reason)
        return len(trained) < steps

    run.run(after_step)
    return trained, rejected


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("slow", ["encoder", "learner"])
def test_bad_utterances_leave_the_batches_of_the_cleaned_data(
    staleness: int, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is faster, and across a kill: the same prompts in the same batches as over data without them."""
    config = configuration(staleness, 12, "data.on_bad=skip", "data.max_rejected=1")
    clean = trainer(config, SimulatedSystem())
    clean.source = PromptSource([Utterance(id=name, audio=f"/{name}.wav", text="x") for name in GOOD], 0)
    clean.intake._source = clean.source
    expected, nothing = trained_by(clean, 12)
    assert nothing == []

    system = SimulatedSystem(unreadable=BAD)
    if slow == "encoder":
        system.encoding = lambda: time.sleep(0.01)
    else:
        monkeypatch.setattr(system, "learn", lambda: time.sleep(0.02))
    run = trainer(config, system)
    first, rejected = trained_by(run, 5)
    state = json.loads(json.dumps(state_dict(run)))
    resumed = trainer(config, SimulatedSystem(unreadable=BAD))
    load_state_dict(resumed, state)
    resumed.system.version = resumed.version
    rest, more = trained_by(resumed, 12)
    assert first + rest == expected, "the same prompts in the same batches"
    found = [name for name, _ in rejected + more]
    stream = PromptSource([Utterance(id=f"u{i}", audio="", text="") for i in range(7)], 0)
    dealt = [prompt.id for prompt in stream.take(len(found) + 36)]
    assert sorted(found + [name for step in expected for name in step]) == sorted(dealt), "each exactly once"
    assert {reason for _, reason in rejected + more} == {"bad utterance: cannot be decoded"}


def test_what_fails_after_it_was_encoded_is_replaced_too() -> None:
    config = configuration(0, 3, "data.on_bad=skip", "data.max_rejected=1")
    system = SimulatedSystem(deadly=["u1"], unheard=["u2"])
    run = trainer(config, system)
    trained, rejected = trained_by(run, 3)
    assert [len(names) for names in trained] == [3, 3, 3], "no step is short"
    reasons = dict(rejected)
    assert {name.split("/")[1] for name in reasons} == {"u1", "u2"}
    assert reasons["0/u1"] == "bad utterance: no engine can sample it"
    assert reasons["0/u2"] == "fewer than 2 valid samples: the judge died"
    assert run.rejections.quarantined == {"u1": "no engine can sample it"}


def test_a_lethal_utterance_is_given_to_nobody_again_in_any_epoch_or_resumption() -> None:
    config = configuration(1, 9, "data.on_bad=skip", "data.max_rejected=1")
    system = SimulatedSystem(deadly=["u1"])
    run = trainer(config, system)
    trained_by(run, 4)
    state = json.loads(json.dumps(state_dict(run)))
    assert system.encoded.count("u1") == 1 and system.encoded.count("u2") > 1, "into the second epoch"
    resumed_system = SimulatedSystem(deadly=["u1"])
    resumed = trainer(config, resumed_system)
    load_state_dict(resumed, state)
    resumed_system.version = resumed.version
    _, rejected = trained_by(resumed, 9)
    assert "u1" not in resumed_system.encoded
    assert [reason for name, reason in rejected if name.endswith("/u1")][-1] == (
        "bad utterance: quarantined: no engine can sample it"
    )


def test_too_long_for_the_context_is_found_before_an_engine_is_asked() -> None:
    config = configuration(0, 1, "data.on_bad=skip", "engines.max_model_len=66", "sampling.max_new_tokens=64")
    system = SimulatedSystem()
    run = trainer(config, system)
    with pytest.raises(UserError, match="21 of the last") as caught:  # every prompt has three positions
        trained_by(run, 1)
    assert "1.0 s: 3 positions + 64 new tokens do not fit engines.max_model_len=66" in str(caught.value)
    assert system.submitted == []


def test_an_error_ends_the_run_and_names_every_bad_utterance_of_the_batch() -> None:
    run = trainer(configuration(0, 3), SimulatedSystem(unreadable=[f"u{i}" for i in range(7)]))
    with pytest.raises(InputError) as caught:
        trained_by(run, 3)
    assert len(caught.value.problems) == 3 and "cannot be decoded" in str(caught.value)
    assert "utterance u" in str(caught.value)


def test_a_fault_of_everything_ends_the_run_within_a_few_steps() -> None:
    """`data.max_rejected` of 0.1 allows 20 of 200."""
    system = SimulatedSystem(unheard=[f"u{i}" for i in range(7)])
    run = trainer(configuration(0, 100), system)
    with pytest.raises(UserError, match=r"21 of the last .* `data.max_rejected: 0.1` allows 20 of 200") as caught:
        trained_by(run, 100)
    assert "the judge died" in str(caught.value) and run.step <= 3


def test_supervised_batches_do_without_bad_recordings_and_texts() -> None:
    required = ["name=x", "model.path=m", "data.train=t", "data.batch_prompts=3", "objective=sft", "steps=4"]
    config = load_config(None, [*required, "data.on_bad=skip", "data.max_rejected=1"])
    run = trainer(config, SimulatedSystem(unreadable=["u1"]))
    reference = run.reference

    def refuses(prompt: Prompt, encoded: EncodedRef) -> tuple[int, ...]:
        if prompt.utterance.id == "u4":
            raise ValueError("half of a pair")
        return reference(prompt, encoded)

    run.reference = refuses  # type: ignore[method-assign]
    trained, rejected = trained_by(run, 4)
    assert [len(names) for names in trained] == [3, 3, 3, 3]
    expected = PromptSource([Utterance(id=name, audio="", text="") for name in GOOD], 0).take(12)
    assert [name for names in trained for name in names] == [prompt.id for prompt in expected]
    assert dict(rejected)["0/u4"] == "bad utterance: text: ValueError: half of a pair"
    assert dict(rejected)["0/u1"] == "bad utterance: cannot be decoded"
