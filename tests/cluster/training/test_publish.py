"""Whose time a publication takes and what it asks the engines, with a *simulated* learner, encoders and fleet on a
clock that moves when told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.config.schema import PublishConfig
from cluster.monitoring.phases import Phase
from cluster.training.publish import FLOAT32_NOISE, MARGIN, Proof, publish
from learner.components.transport import Receivers
from rollout.config import EngineConfig
from rollout.errors import PublicationError
from rollout.weights.publication import compare
from speech.errors import PhaseTimeoutError
from speech.runtime.weights import AdapterBucket, Probe

BUDGET_S = 300.0
CONFIG = PublishConfig(probe_tokens=96)


class SimulatedSystem:
    """Learner, encoders and fleet in one object: gathering takes `gather_s`, and the fleet notes what it is given.

    The log-prob of a token is a hundredth of its id below `level`, and in bfloat16 `rounding` below that.
    """

    def __init__(self, gather_s: float = 0.0, config: EngineConfig | None = None) -> None:
        self.gather_s, self.now = gather_s, 1000.0
        self.config, self.sleeps = config or EngineConfig(), False
        self.level, self.rounding = -1.0, 0.04
        self.update_s: float | None = None

    def publish(self, *args: Any) -> Any:
        return self.gather(*args) if len(args) == 3 else self.load(*args)

    def engines_on(self) -> set[str]:
        return {"a", "b"}

    def gather(self, dtype: str, bucket_bytes: int, receivers: Receivers) -> list[Any]:
        assert receivers == Receivers({"a", "b"}, on_gpus=self.config.gpus_per_engine > 0)
        self.now += self.gather_s
        return []

    def load(
        self, version: int, buckets: Sequence[Any], probes: Sequence[Probe], timeout: float, in_flight: bool
    ) -> float:
        self.update_s = timeout
        self.sent = list(buckets)
        return 1e-6

    def frontend_weights(self) -> dict[str, Any]:
        return {}

    def update(self, weights: Any, timeout: float) -> None:
        self.encoders_s = timeout

    def probe_logprobs(self, sequences: Sequence[Sequence[int]], published: str, compute: str) -> list[float]:
        assert published == self.config.dtype
        level = self.level - (self.rounding if compute == "bfloat16" else 0.0)
        return [level - token / 100 for ids in sequences for token in ids[1:]]


def published(system: Any, config: PublishConfig = CONFIG, version: int = 1, before: Proof | None = None) -> Proof:
    clock: Callable[[], float] = lambda: system.now  # noqa: E731
    phase = Phase("publish", BUDGET_S, clock)
    return publish(version, system, system, system, config, 10, phase, before=before)


def test_an_adapter_goes_in_the_place_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.put", lambda value: ("kept by the controller", value))
    system: Any = SimulatedSystem()
    tensors, config = {"base_model.model.a.lora_A.weight": torch.ones(1, 2)}, {"r": 1}
    system.config = replace(system.config, lora_rank=4)
    system.gather = lambda *_: pytest.fail("weights were gathered")
    system.adapter = lambda: (tensors, config)
    proof = published(system)
    ((where, bucket),) = system.sent
    assert where == "kept by the controller" and isinstance(bucket, AdapterBucket)
    assert bucket.tensors == tensors and bucket.config == config
    assert proof.gap == 1e-6 and len(proof.probes) == 2


def test_a_slow_gathering_takes_nothing_from_the_engines() -> None:
    system = SimulatedSystem(gather_s=0.99 * BUDGET_S)
    assert published(system).gap == 1e-6
    assert system.encoders_s == pytest.approx(0.01 * BUDGET_S)
    assert system.update_s == BUDGET_S


def test_a_gathering_beyond_the_budget_ends_the_phase() -> None:
    system = SimulatedSystem(gather_s=1.01 * BUDGET_S)
    with pytest.raises(PhaseTimeoutError, match="`publish` did not end within 300 s"):
        published(system)
    assert system.update_s is None


@pytest.mark.parametrize(
    ("engines", "noise"),
    [
        (EngineConfig(), FLOAT32_NOISE),
        (EngineConfig(gpus_per_engine=1), FLOAT32_NOISE + 0.04 / 8),
        (EngineConfig(dtype="bfloat16"), FLOAT32_NOISE + 0.04),
        (EngineConfig(dtype="bfloat16", gpus_per_engine=1), FLOAT32_NOISE + 0.04),
    ],
)
def test_the_tolerance_is_what_the_engines_precision_does_to_this_model(engines: EngineConfig, noise: float) -> None:
    system = SimulatedSystem(config=engines)
    proof = published(system)
    assert proof.probes[0].noise == pytest.approx(noise) and proof.tolerance == pytest.approx(MARGIN * noise)
    assert published(system, replace(CONFIG, probe_tolerance=0.5)).tolerance == 0.5


def test_each_version_and_each_attempt_is_asked_about_other_tokens() -> None:
    proofs = [published(SimulatedSystem(), version=version) for version in (1, 2)]
    drawn = [ids for proof in proofs for probe in proof.probes for ids in probe.sequences]
    assert len(drawn) == len(set(drawn)) == 2 * 2 * 2
    assert {len(ids) for ids in drawn} == {48} and all(len(p.logprobs) == 2 * 47 for p in proofs[0].probes)
    assert published(SimulatedSystem(), version=1).probes == proofs[0].probes


def test_a_short_probe_is_one_sequence() -> None:
    (ids,) = published(SimulatedSystem(), PublishConfig(probe_tokens=7)).probes[0].sequences
    assert len(ids) == 7


def test_the_tokens_of_the_publication_before_are_asked_about_again() -> None:
    system = SimulatedSystem()
    proof, versions = published(system), 3
    for version in range(2, 2 + versions):
        system.level -= 0.5
        before, proof = proof, published(system, version=version, before=proof)
        for old, new in zip(before.probes, proof.probes, strict=True):
            assert new.sequences[:2] == old.sequences[-2:] and len(new.sequences) == 4
            assert new.previous == old.logprobs[-94:] and len(new.logprobs) == 4 * 47
            assert new.logprobs[:94] == pytest.approx([value - 0.5 for value in new.previous])


def rounded(logprobs: Sequence[float]) -> list[float]:
    """As a sound engine in bfloat16 would answer."""
    return [value + 0.04 * (-1) ** place for place, value in enumerate(logprobs)]


@pytest.mark.parametrize(
    ("moved", "message"),
    [(0.3, r"differ by 0\.3 nats from the learner's on average"), (0.05, "those of the weights before")],
)
def test_an_engine_that_answers_as_before_is_refused(moved: float, message: str) -> None:
    system = SimulatedSystem(config=EngineConfig(dtype="bfloat16"))
    before = published(system)
    system.level -= moved
    probe = published(system, version=2, before=before).probes[0]
    assert compare(probe, rounded(probe.logprobs)) == pytest.approx(0.04)
    with pytest.raises(PublicationError, match=message):
        compare(probe, rounded([value + moved for value in probe.logprobs]))


def test_weights_that_hardly_moved_prove_nothing_of_the_engine() -> None:
    system = SimulatedSystem(config=EngineConfig(dtype="bfloat16"))
    before = published(system)
    system.level -= 0.03
    probe = published(system, version=2, before=before).probes[0]
    assert compare(probe, rounded([value + 0.03 for value in probe.logprobs])) < probe.tolerance


def test_one_nan_is_a_refusal() -> None:
    probe = published(SimulatedSystem()).probes[0]
    with pytest.raises(PublicationError, match="differ by nan nats"):
        compare(probe, [float("nan"), *probe.logprobs[1:]])
