"""A publication on the engine's side: vLLM's weight-update life cycle, and the proof that it worked."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.v1.engine.async_llm import AsyncLLM

from rollout.errors import PublicationError, within
from rollout.weights.staging import StagedWeights
from speech.runtime.weights import Probe


async def load(engine: AsyncLLM, version: int, weights: StagedWeights, timeout_s: float) -> None:
    """Put staged weights into a paused engine, label them, and drop every cache of the old ones.

    Args:
        timeout_s: budget of each phase.

    Raises:
        PhaseTimeoutError: naming the phase.
        Exception: vLLM's, carrying the message of the worker (for instance the tensor whose digest differs).
    """

    def lost() -> bool:
        return engine.errored

    info = {"files": [str(file) for file in weights.files], "digests": dict(weights.digests)}
    request = WeightTransferUpdateRequest(update_info=info)
    await within(timeout_s, "starting the weight update", engine.start_weight_update(), lost)
    await within(timeout_s, "loading the weights", engine.update_weights(request), lost)
    finish = engine.finish_weight_update(weight_version=str(version))
    await within(timeout_s, "finishing the weight update", finish, lost)
    # Samples in flight are computed again from their tokens: their keys and values belong to the old weights.
    reset = engine.reset_prefix_cache(reset_running_requests=True)
    if not await within(timeout_s, "dropping the prefix cache", reset, lost):
        raise PublicationError("the prefix cache of the old weights could not be dropped")
    await within(timeout_s, "dropping the multimodal cache", engine.reset_mm_cache(), lost)
    await within(timeout_s, "dropping the encoder cache", engine.reset_encoder_cache(), lost)


def compare(probe: Probe, logprobs: Sequence[float]) -> float:
    """Mean |Δ| in nats between the engine's log-probs on a probe and the learner's.

    The mean, because rounding alone makes a few tokens differ by much more than wrong weights make most of them differ.

    Raises:
        PublicationError: it exceeds the probe's tolerance or is not a number; or the engine answers as the weights
            before would, and these differ by more than the engine's rounding does.
    """
    gap = _distance(logprobs, probe.logprobs)
    if not gap <= probe.tolerance:  # a NaN must fail
        raise PublicationError(
            f"the engine's log-probs on the probe differ by {gap:.3g} nats from the learner's on average (expected "
            f"{probe.noise:.3g}, tolerance {probe.tolerance:.3g}): it does not compute with the weights that were sent"
        )
    known = len(probe.previous)
    if known and _distance(probe.previous, probe.logprobs[:known]) > probe.noise:
        new = _distance(logprobs[:known], probe.logprobs[:known])
        old = _distance(logprobs[:known], probe.previous)
        if old < new:
            raise PublicationError(
                f"the engine's log-probs on the probe are those of the weights before: they differ by {old:.3g} nats "
                f"on average from these, and by {new:.3g} from the weights that were sent"
            )
    return gap


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return fmean(abs(x - y) for x, y in zip(a, b, strict=True))
