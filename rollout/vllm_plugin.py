"""What vLLM imports in each of its processes, through the entry point group `vllm.general_plugins`."""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rollout.vllm_process.holdings import note_holdings
from rollout.vllm_process.orphans import end_with_parent
from rollout.weights.transfer import BACKEND, ObjectStoreTransferEngine


def register() -> None:
    """Entry point. vLLM may call it more than once in a process, and refuses a second registration."""
    # These here because this is the only code of ours that runs in each of vLLM's processes.
    note_holdings()
    end_with_parent()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreTransferEngine)
