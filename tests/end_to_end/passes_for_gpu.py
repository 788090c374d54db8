"""GRPO's loss, in a learner whose CPU passes for a GPU with engines on GPUs around it.

So a real run gives its weights away in a buffer of rank 0, which the engines' workers open. Everything but what the
driver of a GPU would say is the run's own code; the buffer is shared memory of torch.
"""

from __future__ import annotations

from dataclasses import replace

from learner.components import transport
from learner.components.transport import Gpu, Outlet, Receivers, Transport, choose
from learner.losses.policy.grpo import grpo_loss

__all__ = ["grpo_loss"]
TOTAL = 2**40


def on_gpus(receivers: Receivers, node: str, size: int, gpu: Gpu | None, fits_host: bool) -> tuple[Transport, str]:
    return choose(replace(receivers, on_gpus=True), node, size, gpu, fits_host)


def stub(outlet: Outlet, has_learned: bool, is_read: bool) -> Gpu:
    return Gpu(TOTAL, TOTAL, 0, has_learned, outlet.stage is not None, is_read, outlet._fault)


transport.choose = on_gpus
Outlet._gpu = stub  # type: ignore[method-assign]
