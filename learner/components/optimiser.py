"""What every learner shares: the process group, AdamW, the schedule, the clipped update."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from learner.components.schedule import learning_rate
from learner.config import LearnerConfig


class RankContext:
    """This process as one rank of a process group.

    Attributes:
        device: where it computes.
        mesh: all ranks in one dimension, for FSDP2.
        mixed_precision: bfloat16 compute on CUDA, float32 on CPU.
    """

    def __init__(self, config: LearnerConfig, rank: int, world_size: int, init_method: str) -> None:
        """Join.

        Args:
            init_method: `tcp://host:port` or `file://path`, where the ranks meet.
        """
        torch.set_num_threads(config.threads)
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cuda", 0) if config.gpus_per_rank > 0 else torch.device("cpu")
        cuda = self.device.type == "cuda"
        # The gradient of indexing (positions shared by a group's samples) adds with atomics from two threads on, in the
        # order in which they arrive: two runs of one seed would part in the last bit. On CUDA some operations have no
        # deterministic form (CTC's gradient) and would raise.
        torch.use_deterministic_algorithms(not cuda)
        torch.utils.deterministic.fill_uninitialized_memory = False
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=init_method,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=config.step_timeout_s),
        )
        self.mesh = init_device_mesh(self.device.type, (world_size,))
        self.mixed_precision = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
            if cuda
            else MixedPrecisionPolicy()
        )

    def all_reduce_max(self, count: int) -> int:
        """The largest of all ranks' counts. A collective."""
        tensor = torch.tensor(count, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)


def shard(
    module: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, mixed_precision: MixedPrecisionPolicy
) -> None:
    """Apply FSDP2 in place: one parameter group per layer, the rest in the module's own.

    Which parameters a micro-batch uses differs between ranks: one has audio and another none, one computes a loss and
    another runs a dummy micro-batch with weight 0. Ranks must reduce gradients of equal sizes nevertheless, so a
    parameter without a gradient counts as one with gradient 0.
    """
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=mixed_precision)
    fully_shard(module, mesh=mesh, mp_policy=mixed_precision)
    module.set_reduce_scatter_unused_params(True)


def sharded_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters by name as the optimiser has them, for whoever reads them between updates.

    After a forward without a backward FSDP2 leaves the root group gathered, in the precision in which it computes.

    Args:
        module: the one that `shard` was given, not a part of it.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return list(module.named_parameters())


def adamw(module: nn.Module, config: LearnerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that learn, weight decay on matrices only, with moments of 0 from the start.

    AdamW itself creates them at the first update. torch's `get_state_dict` does so earlier, by an update of its own
    that AdamW counts: a checkpoint before the first update would weaken that update.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
    )
    for p in trained:
        optimiser.state[p] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimiser


def scheduled_rate(config: LearnerConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step under the configured schedule."""
    return learning_rate(
        step,
        peak=config.lr,
        warmup_steps=config.warmup_steps,
        total_steps=total_steps,
        decay=config.decay,
        floor=config.lr_floor,
        decay_steps=config.decay_steps,
    )


def apply_update(module: nn.Module, optimiser: torch.optim.Optimizer, config: LearnerConfig, rate: float) -> float:
    """Clip the gradients of all ranks together and step; the norm before clipping. A collective.

    Raises:
        FloatingPointError: the gradient is not finite; the weights are left as they were.
    """
    trained = [p for p in module.parameters() if p.grad is not None]
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm or float("inf")))
    if not torch.isfinite(norm):
        raise FloatingPointError(f"gradient norm is {norm.item()}; the weights were not changed")
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    return float(norm)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered from all ranks (a collective); any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
