"""A publication on the engine's side: vLLM's weight-update life cycle, and the proof that it worked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from rollout.errors import EngineLostError, PublicationError, RefusedError, UnreadableError, within
from rollout.weights.adapter_worker import ADAPTER_ID
from rollout.weights.staging import StagedWeights
from speech.runtime.device_weights import DeviceBucket
from speech.runtime.weights import Probe

ADAPTER = LoRARequest("adapter", ADAPTER_ID, "/nowhere")
"""What every request to an engine with LoRA names. The path is never read, as the adapter is never missing; were it
missing all the same, the request would fail."""


async def receive_adapter(engine: AsyncLLM, weights: StagedWeights, timeout_s: float) -> None:
    """Let the workers read and verify a staged adapter, while the engine goes on with the one before.

    Raises:
        RefusedError: a worker cannot take it.
    """
    arguments = {
        "files": [str(file) for file in weights.files],
        "digests": dict(weights.digests),
        "config": dict(weights.adapter or {}),
    }
    call = engine.collective_rpc("receive_adapter", kwargs=arguments)
    try:
        await within(timeout_s, "verifying the adapter", call, lambda: engine.errored)
    except (EngineDeadError, EngineLostError):
        raise
    except Exception as error:
        raise RefusedError(str(error)) from error


async def clear_adapter(engine: AsyncLLM, timeout_s: float) -> None:
    """Compute with the base alone from here on."""
    await within(timeout_s, "clearing the adapter", engine.collective_rpc("clear_adapter"), lambda: engine.errored)


async def open_weights(engine: AsyncLLM, bucket: DeviceBucket, timeout_s: float) -> None:
    """Let the workers open weights on the learner's device and verify them, while the engine goes on with those before.

    Raises:
        UnreadableError: a worker cannot open them, or reads something else than was sent; named.
    """
    call = engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info={"device": asdict(bucket)}))
    try:
        await within(timeout_s, "verifying the weights", call, lambda: engine.errored)
    except (EngineDeadError, EngineLostError):
        raise
    except Exception as error:
        raise UnreadableError(str(error)) from error


async def load(engine: AsyncLLM, version: int, weights: StagedWeights, timeout_s: float) -> None:
    """Put staged weights into a paused engine, label them, and drop every cache of the old ones.

    Of an adapter, and of weights on the learner's device: what the workers have received or opened.

    Args:
        timeout_s: budget of each phase.

    Raises:
        PhaseTimeoutError: naming the phase.
        Exception: vLLM's, carrying the message of the worker (for instance the tensor whose digest differs).
    """

    def lost() -> bool:
        return engine.errored

    if weights.adapter is not None:
        await within(timeout_s, "loading the adapter", engine.collective_rpc("load_adapter"), lost)
        await within(timeout_s, "labelling the adapter", engine.update_weight_version(str(version)), lost)
    else:
        info: dict[str, Any] = {"files": [str(file) for file in weights.files], "digests": dict(weights.digests)}
        if weights.device is not None:
            info = {"opened": True}
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
