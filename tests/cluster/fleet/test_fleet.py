"""The fleet against real Ray actors that stand in for engines: they keep an engine's manners and compute nothing, so
that death, silence and refusal cost seconds. Real engines under the same faults are in tests/chaos."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError

from cluster.actors.model import ModelRef
from cluster.fleet import replica as engine_member
from cluster.fleet.fleet import EngineFleet
from cluster.fleet.health import State
from cluster.fleet.replica import EngineReplica, Publication
from cluster.fleet.rollout_future import FleetError, WithdrawnError
from rollout.actors import EncodedRef
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine.stats import EngineStats
from rollout.errors import PublicationError, StaleEngineError, WeightsLostError
from speech.errors import PhaseTimeoutError, UserError
from speech.records import BadUtterance, Prompt, PromptLayout, Utterance
from speech.runtime.weights import Probe
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("ray_session")
SAMPLING = SamplingConfig()
PROBES = [Probe(((token, 2),), (-1.0,), 5e-4, 1e-3) for token in (1, 2, 3)]


@ray.remote
class StandIn:
    """Behaves as an `EngineActor`. A prompt `die` kills it and `hang` stops it, each the first time only, told by a
    file in the folder that stands for the model's; `always-die` every time. A bucket may be a refusal."""

    def __init__(self, folder: str, family: str | None, config: EngineConfig, options: Any, sleeps: bool) -> None:
        if config.dtype == "bfloat16":
            raise UserError("no bfloat16 here")
        self.folder, self.version, self.generated = Path(folder), None, 0
        self.asleep = self.was_shut_down = False

    def first(self, name: str) -> bool:
        marker = self.folder / name
        seen = marker.exists()
        marker.touch()
        return not seen

    async def start(self, version: int | None) -> str:
        if (self.folder / "gpu-held").exists():
            raise RuntimeError("no memory is free on the GPU")
        self.version = version
        return ray.get_runtime_context().get_node_id()

    async def update_weights(self, version: int, buckets: Sequence[Any], probe: Probe, in_flight: bool) -> float:
        (word,) = await asyncio.gather(*buckets)
        while word == "slow-to-publish" and (self.folder / word).exists():
            await asyncio.sleep(0.02)
        if self.was_shut_down or word == "corrupt" or (word == "corrupt once" and self.first(f"refused-{version}")):
            raise PublicationError("a digest differs")
        if word == "gone" or (word == "gone for one" and self.first(f"gone-{version}")):
            raise WeightsLostError("weights were on a node that is gone")
        if word == "unlucky" and probe.sequences[0][0] == 1:
            raise PublicationError("the log-probs differ")
        if word == "slow" or (word == "hanging once" and self.first(f"hung-{version}")):
            await asyncio.sleep(600 if word == "hanging once" else 6)
        self.version, self.asleep = version, False
        return 1e-6

    async def generate(
        self, prompts: Sequence[Prompt], audio: Sequence[Any], sampling: SamplingConfig
    ) -> AsyncIterator[tuple[int, str]]:
        if self.version is None or self.asleep:
            raise StaleEngineError("it awaits a publication")
        ids = [prompt.id for prompt in prompts]
        if "lost" in ids:
            raise ObjectLostError("ab", None, "encode")
        if "long" in ids:
            raise UserError("too long")
        if "late" in ids and self.first("late"):
            raise PhaseTimeoutError("generating 1 groups", 5.0)
        if "always-die" in ids or ("die" in ids and self.first("died")):
            os._exit(1)
        if "hang" in ids and self.first("hung"):
            time.sleep(600)
        try:
            await asyncio.sleep(600 if "endless" in ids else 0.3 if "slow" in ids else 0)
        except asyncio.CancelledError:
            (self.folder / "cancelled").touch()
            raise
        self.generated += len(prompts)
        for place, name in reversed(list(enumerate(ids))):
            halfway = name == "die-halfway" and self.first("died")
            while (halfway or name == "late-one") and not (self.folder / "go").exists():
                await asyncio.sleep(0.02)
            if halfway:
                os._exit(1)
            yield place, f"{name}@{self.version}, {os.getpid()}" if "die-halfway" in ids else f"{name}@{self.version}"

    async def sleep(self, keep_weights: bool) -> None:
        self.asleep = True

    async def wake(self) -> None:
        self.asleep = False

    async def health(self) -> None:
        if self.was_shut_down:
            raise StaleEngineError("the engine was shut down")

    async def stats(self) -> EngineStats:
        while self.generated == 1 and (self.folder / "slow-to-tell").exists():
            (self.folder / "asked").touch()
            await asyncio.sleep(0.02)
        return EngineStats(prompts=self.generated)

    async def shutdown(self) -> None:
        self.was_shut_down = True


Start = Callable[..., EngineFleet]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(engine_member, "EngineActor", StandIn)
    monkeypatch.setattr(engine_member, "engine_options", lambda config: {"num_cpus": 0})
    fleets = []

    def started(**settings: Any) -> EngineFleet:
        config = EngineConfig(**{"heartbeat_s": 0.2, "heartbeat_timeout_s": 4.0} | settings)
        fleet = EngineFleet(ModelRef(str(tmp_path), None), config)
        fleets.append(fleet)
        fleet.start(None)
        fleet.ready()
        return fleet

    yield started
    for fleet in fleets:
        fleet.shutdown()


def order(*ids: str) -> tuple[list[Prompt], list[EncodedRef]]:
    utterance = Utterance(id="u", audio="/none", text="")
    prompts = [Prompt(id=name, utterance=utterance, epoch=0, position=i, seed=i) for i, name in enumerate(ids)]
    return prompts, [EncodedRef(ray.put(0), 1.0, PromptLayout((0,), 0, 1)) for _ in ids]


def generate(fleet: EngineFleet, *ids: str, timeout: float | None = 60.0) -> list[Any]:
    return fleet.generate(*order(*ids), SAMPLING, timeout)


def publish(fleet: EngineFleet, version: int, word: str = "sound") -> float:
    return fleet.publish(version, [ray.put(word)], PROBES, 30.0)


def test_an_engine_without_a_place_is_not_asked_for_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three time-outs and the waits between them were ten minutes for nothing."""
    monkeypatch.setattr(engine_member, "engine_options", lambda config: {"num_cpus": 0, "num_gpus": 99})
    with pytest.raises(FleetError, match="engine 0 found no place within 1 s"):
        start(startup_timeout_s=1.0)


def test_work_keeps_its_order_and_waits_for_a_verified_publication(start: Start) -> None:
    fleet = start(count=2)
    with pytest.raises(
        PhaseTimeoutError, match=r"`generate` did not end within 0\.5 s: engine 0 is stale; engine 1 is"
    ):
        generate(fleet, "a", timeout=0.5)
    publish(fleet, 7)
    assert generate(fleet, "a", "b", "c") == ["a@7", "b@7", "c@7"]
    assert fleet.counts().healthy == 2 and fleet.stats().prompts == 4, "the first one was done after all"


def test_groups_come_one_by_one(start: Start, tmp_path: Path) -> None:
    fleet = start(count=1)
    publish(fleet, 1)
    future = fleet.submit(*order("late-one", "a", "b"), SAMPLING)
    parts = [range(0, 1), range(1, 3)]
    assert future.first_of(parts) == 1
    assert future.sampled == {1: "a@1", 2: "b@1"} and not future.done()
    (tmp_path / "go").touch()
    assert future.first_of(parts[:1]) == 0
    assert future.result(30.0) == ["late-one@1", "a@1", "b@1"]


def test_what_another_thread_has_fetched_is_not_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads wait for the fleet, one in a publication: in 5,488 steps of a run it happened once that Ray no longer
    knew what the second was about to wait for."""
    fleet = start(count=1)
    publish(fleet, 1)
    wait, raised = ray.wait, []

    def fetched_meanwhile(calls: list[Any], **options: Any) -> Any:
        if options.get("timeout") and not raised:
            raised.append(True)
            raise ValueError("An application is trying to access a Ray object whose owner is unknown(2c48). Please …")
        return wait(calls, **options)

    monkeypatch.setattr(ray, "wait", fetched_meanwhile)
    assert generate(fleet, "a", "b") == ["a@1", "b@1"] and raised
    raised.clear()
    monkeypatch.setattr("cluster.fleet.fleet.FETCHED", "something else")
    with pytest.raises(ValueError, match="owner is unknown"):
        generate(fleet, "late-one")


def test_what_came_before_an_engine_was_lost_is_kept(start: Start, tmp_path: Path) -> None:
    """It may be scored already; the engine that takes over samples all of the shard, which then is the same again."""
    fleet = start(count=1)
    publish(fleet, 1)
    future = fleet.submit(*order("die-halfway", "a"), SAMPLING)
    assert future.first_of([range(1, 2)]) == 0
    before = future.sampled[1]
    (tmp_path / "go").touch()
    result = future.result(60.0)
    assert result[1] == before and fleet.counts().restarts == 1
    assert str(result[0]).startswith("die-halfway@1") and str(result[0]).split(", ")[1] != str(before).split(", ")[1]
    assert generate(fleet, "c") == ["c@1"]


def both_serve(fleet: EngineFleet) -> None:
    """Nobody asks for anything, and yet the engines come back."""
    until(lambda: fleet.counts().healthy == 2)


def test_dead_and_hung_engines_are_replaced_and_refitted(start: Start) -> None:
    fleet = start(count=2)
    publish(fleet, 3)
    assert generate(fleet, "a", "die", "b", "c") == ["a@3", "die@3", "b@3", "c@3"]
    both_serve(fleet)
    assert generate(fleet, "a", "b") == ["a@3", "b@3"], "which ends the row of failures"
    assert generate(fleet, "hang", "b") == ["hang@3", "b@3"]
    counts = fleet.counts()
    assert counts.restarts == 2 and counts.reissued == 2 + 1
    both_serve(fleet)


def test_totals_count_an_engine_once_though_it_was_replaced_while_they_were_asked_for(
    start: Start, tmp_path: Path
) -> None:
    fleet = start(count=2)
    publish(fleet, 1)
    generate(fleet, "a", "b", "c")
    assert fleet.stats().prompts == 3
    first, second = fleet.replicas()
    (tmp_path / "slow-to-tell").touch()  # for the second, which has done one prompt
    totals: list[EngineStats] = []
    asking = threading.Thread(target=lambda: totals.append(fleet.stats()))
    asking.start()
    until((tmp_path / "asked").exists)
    assert ray.get(first.actor.stats.remote()).prompts == 2, "its answer to the other question is there too"
    ray.kill(first.actor)
    until(lambda: fleet.counts().restarts == 1)
    (tmp_path / "slow-to-tell").unlink()
    asking.join()
    assert [total.prompts for total in totals] == [3]
    both_serve(fleet)
    assert fleet.stats().prompts == 3 and second in fleet.replicas()


@pytest.mark.slow
def test_an_only_engine_that_dies_is_waited_for(start: Start) -> None:
    fleet = start()
    publish(fleet, 1)
    assert generate(fleet, "a", "die") == ["a@1", "die@1"]
    assert fleet.stats().prompts == 2 and fleet.counts().reissued == 2


def test_a_prompt_that_kills_engines_is_found_and_costs_no_other_its_samples(start: Start) -> None:
    fleet = start(max_failures=2, heartbeat_timeout_s=60.0)
    publish(fleet, 1)
    a, bad, b = generate(fleet, "a", "always-die", "b", timeout=300.0)
    assert (a, b) == ("a@1", "b@1")
    assert isinstance(bad, BadUtterance) and bad.id == "u" and bad.lethal
    assert "no engine can sample it: the last engine that was lost on it, engine 0" in bad.reason
    assert generate(fleet, "a") == ["a@1"], "its deaths do not count against the engine"
    assert fleet.counts().restarts == 2


@pytest.mark.slow
def test_engines_that_die_of_whatever_they_get_end_the_run(start: Start) -> None:
    fleet = start(count=2, max_failures=2)
    publish(fleet, 1)
    with pytest.raises(FleetError, match="the last engine that was lost on it") as caught:
        generate(fleet, *["always-die"] * 6, timeout=600.0)
    assert "3 prompts failed one after another, each alone" in caught.value.__notes__[0]


@pytest.mark.slow
def test_the_fleet_goes_on_without_an_engine_that_fails_again_and_again(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = start(count=2, min=1, max_failures=2)
    publish(fleet, 1)
    (tmp_path / "gpu-held").touch()
    first, second = fleet.replicas()
    slow = fleet.submit(*order("slow", "b"), SAMPLING)
    ray.kill(first.actor)
    assert slow.result(60.0) == ["slow@1", "b@1"], "the other one does it all"
    until(lambda: fleet.replicas() == [second])
    assert "engine 0 failed 2 times in a row" in caplog.text and "the fleet goes on without it" in caplog.text
    publish(fleet, 2)
    assert generate(fleet, "a", "b") == ["a@2", "b@2"] and fleet.counts().restarts == 1
    assert fleet.replicas() == [second], "nor is it started again"


def test_an_error_of_the_work_is_not_the_engines(start: Start) -> None:
    fleet = start()
    publish(fleet, 1)
    assert generate(fleet, "a", "long", "b") == ["a@1", BadUtterance("u", "no engine can sample it: too long"), "b@1"]
    assert generate(fleet, "a") == ["a@1"] and fleet.counts().restarts == 0
    with pytest.raises(UserError, match="too long"):  # as with settings that no prompt fits
        generate(fleet, "long", "long", "long")
    assert generate(fleet, "a") == ["a@1"] and fleet.counts().restarts == 0


def test_a_time_out_in_an_engine_is_the_engines(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """It crosses from the actor's process as what it is: otherwise the work would be blamed, and the run would end."""
    fleet = start()
    publish(fleet, 1)
    assert generate(fleet, "late") == ["late@1"] and fleet.counts().restarts == 1
    assert "engine 0: generating failed: phase `generating 1 groups` did not end within 5 s" in caplog.text


def test_cancelled_work_stops_and_costs_no_engine(start: Start, tmp_path: Path) -> None:
    fleet = start()
    publish(fleet, 1)
    endless = fleet.submit(*order("endless"), SAMPLING)
    while not fleet.replicas()[0].pending("generating"):
        time.sleep(0.02)
    time.sleep(0.5)  # it has begun
    endless.cancel()
    with pytest.raises(WithdrawnError):
        endless.result(5.0)
    assert generate(fleet, "a") == ["a@1"] and fleet.counts().restarts == fleet.counts().reissued == 0
    assert (tmp_path / "cancelled").exists(), "the engine stopped as well"


@pytest.mark.slow
def test_engines_leave_for_the_learner_and_are_not_restarted_before_it_has_gone(start: Start) -> None:
    fleet = start(count=2)
    publish(fleet, 1)
    fleet.sleep(60.0, keep_weights=True)
    early = fleet.submit(*order("a", "b"), SAMPLING)
    time.sleep(0.5)
    assert not early.done()
    fleet.wake(60.0)
    assert early.result(60.0) == ["a@1", "b@1"]
    fleet.sleep(60.0)
    ray.kill(fleet.replicas()[0].actor)
    time.sleep(1.0)
    assert fleet.counts().restarts == 0 and all(replica.asleep for replica in fleet.replicas())
    publish(fleet, 2)
    assert generate(fleet, "a", "b") == ["a@2", "b@2"] and fleet.counts().restarts == 1
    both_serve(fleet)


def test_a_constructor_that_raises_is_called_once(start: Start) -> None:
    with pytest.raises(ray.exceptions.RayActorError, match="no bfloat16 here"):
        start(dtype="bfloat16")


@pytest.mark.slow
def test_a_refused_publication_is_repeated_on_a_new_engine_and_then_believed(start: Start) -> None:
    fleet = start()
    publish(fleet, 1)
    publish(fleet, 2, "corrupt once")
    assert fleet.counts().restarts == 1 and generate(fleet, "a") == ["a@2"]
    with pytest.raises(PublicationError, match="digest"):
        publish(fleet, 3, "corrupt")


@pytest.mark.slow
def test_an_engine_that_is_tried_again_is_asked_about_other_tokens(start: Start) -> None:
    fleet = start()
    publish(fleet, 1, "unlucky")
    assert fleet.counts().restarts == 1 and generate(fleet, "a") == ["a@1"]


@pytest.mark.slow
def test_a_publication_may_take_longer_than_a_heartbeat(start: Start) -> None:
    """A busy loader is not dead: its update has a budget of its own."""
    fleet = start(count=2)
    publish(fleet, 1, "slow")
    assert fleet.counts().restarts == 0 and fleet.counts().healthy == 2
    assert generate(fleet, "a", "b") == ["a@1", "b@1"]


@pytest.mark.slow
def test_an_engine_that_hangs_in_its_update_is_replaced_and_its_successor_has_the_whole_budget(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_member, "GRACE_S", 1.0)
    budgets = []
    asked = EngineReplica.publish

    def noted(replica: EngineReplica, publication: Publication, now: float) -> None:
        asked(replica, publication, now)
        (call,) = replica.pending("publishing")
        assert call.deadline is not None
        budgets.append(call.deadline - now)

    monkeypatch.setattr(EngineReplica, "publish", noted)
    fleet = start()
    assert fleet.publish(1, [ray.put("hanging once")], PROBES, 5.0) == 1e-6
    assert fleet.counts().restarts == 1 and "engine 0: publishing took longer than 5 s" in caplog.text
    assert budgets == pytest.approx([6.0, 6.0])


@pytest.mark.slow
def test_the_fleet_grows_while_it_is_waited_for_and_shrinks_when_idle(start: Start) -> None:
    fleet = start(count=1, max=3)
    for version in range(1, 40):
        publish(fleet, version)
        assert generate(fleet, "slow", "b", "c") == [f"{name}@{version}" for name in ("slow", "b", "c")]
        if fleet.counts().healthy == 3:
            break
    assert fleet.counts().healthy == 3, "the learner does nothing but wait"
    for version in range(100, 140):
        publish(fleet, version)
        generate(fleet, "a", "b", "c")
        time.sleep(0.2)  # learning
        if len(fleet.replicas()) == 1:
            break
    assert len(fleet.replicas()) == 1


@pytest.mark.slow
def test_an_engine_on_a_node_that_will_go_drains_first(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = start(count=2)
    publish(fleet, 1)
    first = fleet.replicas()[0]
    slow = fleet.submit(*order("slow", "b"), SAMPLING)
    first.node = "doomed"
    monkeypatch.setattr("cluster.fleet.fleet.draining_nodes", lambda: {"doomed"})
    deadline = time.monotonic() + 20
    while first in fleet.replicas():
        assert first.health.state in (State.HEALTHY, State.DRAINING) and time.monotonic() < deadline
        time.sleep(0.02)
    assert slow.result(30.0) == ["slow@1", "b@1"] and fleet.counts().reissued == 0
    publish(fleet, 2)
    assert generate(fleet, "a", "b") == ["a@2", "b@2"]


def test_weights_that_are_gone_are_no_fault_of_the_engines(start: Start) -> None:
    """Their node took the learner with it. Each engine was restarted for it until the run ended."""
    fleet = start(count=2, max_failures=2)
    publish(fleet, 1)
    with pytest.raises(WeightsLostError, match="node that is gone"):
        publish(fleet, 2, "gone")
    with pytest.raises(WeightsLostError, match="node that is gone"):
        generate(fleet, "a", timeout=None)
    fleet.abandon()
    publish(fleet, 2)
    assert generate(fleet, "a", "b") == ["a@2", "b@2"] and fleet.counts().restarts == 0


def test_who_got_the_weights_before_they_were_gone_serves_alone(start: Start) -> None:
    fleet = start(count=2)
    publish(fleet, 1, "gone for one")
    assert generate(fleet, "a", "b", "c") == ["a@1", "b@1", "c@1"] and fleet.counts().healthy == 1
    publish(fleet, 2)
    until(lambda: fleet.counts().healthy == 2)
    assert fleet.counts().restarts == 0


def test_what_was_encoded_and_is_gone_makes_no_prompt_bad(start: Start) -> None:
    fleet = start()
    publish(fleet, 1)
    with pytest.raises(ObjectLostError):
        generate(fleet, "a", "lost")
    assert generate(fleet, "a") == ["a@1"] and fleet.counts().restarts == 0
