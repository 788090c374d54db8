"""An engine on CPUs computes in vLLM's core process itself, as an engine with one GPU does."""

from __future__ import annotations

from vllm.v1.executor.uniproc_executor import UniProcExecutor


class OneProcessExecutor(UniProcExecutor):
    """No worker process, and so no second start, no second copy of all libraries, and no hop between two processes at
    every decoding step.

    vLLM gives its own `uni` up on CPUs because the core's environment may not have the OpenMP settings that a worker is
    started with. Ours has: the actor that starts it is itself started with them (`rollout.environment`).
    """
