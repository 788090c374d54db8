"""Weight sync (publication): the learner's weights reach every engine, verified, under a new policy version."""

from __future__ import annotations

import random
from collections.abc import Callable

from cluster.actors.encoders import EncoderPool
from cluster.config import PublishConfig
from cluster.fleet.fleet import EngineFleet
from cluster.monitoring.phases import Phase
from learner.gang import LearnerGroup
from speech.runtime.weights import Probe

# Healthy engines differ from the learner by about 1e-5 nats in float32 and 0.01 on average in bfloat16; wrong weights
# by 0.4 and more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}


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
) -> float:
    """Send the policy to the engines and prove that it arrived.

    The learner gathers its weights into the object store; each engine checks every tensor's digest, loads them and
    must then reproduce the learner's log-probs on a token sequence drawn anew for each version.

    Args:
        vocabulary: token ids below this number may stand in the probe.
        phase: whose budget bounds what comes before the engines, and then, whole again, the update of each engine and
            each attempt of it: an engine is not to be killed for a learner that was slow (decision 021).
        in_flight: see `EngineFleet.publish`.
        before_load: called after the buckets are in the object store and before engines load them; it offloads the
            learner where GPUs are shared.

    Returns:
        Largest |Δ log-prob| of the probe over all engines, in nats.

    Raises:
        PublicationError: naming engine, phase and tensor. The engine refuses to sample until a good publication.
        PhaseTimeoutError: the budget was over before the engines had their turn.
    """
    buckets = learner.publish(fleet.config.dtype, config.bucket_mb * 2**20)
    encoders.update(learner.frontend_state_dicts(), phase.remaining())
    token_ids = random.Random(version).choices(range(vocabulary), k=config.probe_tokens)
    tolerance = config.probe_tolerance if config.probe_tolerance is not None else TOLERANCE[fleet.config.dtype]
    probe = Probe(tuple(token_ids), tuple(learner.probe_logprobs(token_ids)), tolerance)
    before_load()
    return fleet.publish(version, buckets, probe, phase.timeout_s, in_flight)
