"""Weight sync (publication): the learner's weights reach every engine, verified, under a new policy version."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import ray

from cluster.actors.encoders import EncoderPool
from cluster.config import PublishConfig
from cluster.fleet.fleet import EngineFleet
from cluster.monitoring.phases import Phase
from learner.components.transport import Receivers
from learner.gang import LearnerGroup
from rollout.config import EngineConfig
from speech.runtime.weights import AdapterBucket, Probe

MARGIN = 2.0
"""Tolerance of a probe over the noise that the learner expects on it (docs/measurements.md has both error rates)."""
FLOAT32_NOISE = 1e-4
"""Mean |Δ| in nats of two float32 computations of a large model that add in different orders: three times what 28
layers with sharp attention showed, and a twentieth of what the smallest fault showed there (docs/measurements.md)."""
TF32 = 1 / 8
"""Rounding of TF32 over bfloat16's: three more bits. vLLM's attention on GPUs multiplies float32 in it."""
ATTEMPTS = 2
"""Probes of a publication: an engine that is tried again is asked about other tokens."""
SEQUENCE_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Proof:
    """Of a publication: what the engines were held to.

    Attributes:
        gap: mean |Δ log-prob| on a probe in nats, of the engine where it is largest.
        tolerance: the largest that counts as the same weights, in nats.
        probes: one for each attempt of an engine.
    """

    gap: float
    tolerance: float
    probes: tuple[Probe, ...]


def publish(
    version: int,
    learner: LearnerGroup,
    fleet: EngineFleet,
    encoders: EncoderPool,
    config: PublishConfig,
    vocabulary: int,
    phase: Phase,
    in_flight: bool = False,
    before_load: Callable[[], None] = lambda: None,
    before: Proof | None = None,
) -> Proof:
    """Send the policy to the engines and prove that it arrived.

    The learner gathers its weights into the object store, or, where it is on one node with all engines, into the shared
    memory of that node or the memory of its GPU (`learner/components/transport.py`). Each engine checks every tensor's
    digest, loads them, checks what it holds then, and must reproduce the learner's log-probs on token sequences drawn
    anew for each version. Engines with `lora_rank` get the learner's adapter alone, which this process keeps for those
    that come later.

    Args:
        vocabulary: token ids below this number may stand in the probe.
        phase: whose budget bounds what comes before the engines, and then, whole again, the update of each engine and
            each attempt of it: an engine is not to be killed for a learner that was slow (decision 021).
        in_flight: see `EngineFleet.publish`.
        before_load: called after the weights are gathered and before engines load them; it offloads the learner where
            GPUs are shared.
        before: of the publication before, whose tokens are asked about again: an engine that answers as it should have
            then is stale.

    Raises:
        PublicationError: naming engine, phase and tensor. The engine refuses to sample until a good publication.
        PhaseTimeoutError: the budget was over before the engines had their turn.
    """
    if fleet.config.lora_rank:
        buckets = [ray.put(AdapterBucket.pack(*learner.adapter()))]
    else:
        take_back = fleet.config.gpu_memory_utilization if fleet.sleeps else 0.0
        receivers = Receivers(fleet.engines_on(), fleet.config.gpus_per_engine > 0, take_back)
        buckets = learner.publish(fleet.config.dtype, config.bucket_mb * 2**20, receivers)
    encoders.update(learner.frontend_weights(), phase.remaining())
    probes = make_probes(version, learner, fleet.config, config, vocabulary, before)
    before_load()
    gap = fleet.publish(version, buckets, probes, phase.timeout_s, in_flight)
    return Proof(gap, max(probe.tolerance for probe in probes), probes)


def make_probes(
    version: int,
    learner: LearnerGroup,
    engines: EngineConfig,
    config: PublishConfig,
    vocabulary: int,
    before: Proof | None,
) -> tuple[Probe, ...]:
    """Probes of the learner's weights, one for each attempt of an engine, in as few forward passes as one takes.

    The tolerance is calibrated on the run's own model: the learner's log-probs in bfloat16 differ from those in float32
    by about as much as a bfloat16 engine's do, whatever the model.
    """
    length = min(SEQUENCE_TOKENS, config.probe_tokens)  # short, so that they fit into any engine
    count = config.probe_tokens // length
    draws = random.Random(version)
    old = ((),) * ATTEMPTS if before is None else tuple(probe.sequences[-count:] for probe in before.probes)
    asked = [again + tuple(tuple(draws.choices(range(vocabulary), k=length)) for _ in range(count)) for again in old]
    together = [ids for sequences in asked for ids in sequences]
    exact = learner.probe_logprobs(together, engines.dtype, "float32")
    rounding = 1.0 if engines.dtype == "bfloat16" else TF32 if engines.gpus_per_engine else 0.0
    noise = FLOAT32_NOISE
    if rounding:
        rounded = learner.probe_logprobs(together, engines.dtype, "bfloat16")
        noise += rounding * fmean(abs(a - b) for a, b in zip(exact, rounded, strict=True))
    tolerance = MARGIN * noise if config.probe_tolerance is None else config.probe_tolerance
    new = count * (length - 1)
    previous = ((),) * ATTEMPTS if before is None else tuple(probe.logprobs[-new:] for probe in before.probes)
    values = iter(exact)
    return tuple(
        Probe(sequences, tuple(islice(values, len(sequences) * (length - 1))), noise, tolerance, known)
        for sequences, known in zip(asked, previous, strict=True)
    )
