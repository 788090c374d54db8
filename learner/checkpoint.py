"""Distributed checkpoints (DCP): every rank writes its shards, any number of ranks reads them back."""

from __future__ import annotations

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer


def save(folder: Path, policy: nn.Module, optimiser: Optimizer) -> None:
    """Write sharded weights and optimiser state. A collective; the caller makes the folder's appearance atomic."""
    weights, moments = get_state_dict(policy, optimiser, options=StateDictOptions(ignore_frozen_params=True))
    dcp.save({"policy": weights, "optimiser": moments}, checkpoint_id=folder)


def load(folder: Path, policy: nn.Module, optimiser: Optimizer) -> None:
    """Read what `save` wrote, resharding if the number of ranks changed. A collective."""
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    weights, moments = get_state_dict(policy, optimiser, options=options)
    state = {"policy": weights, "optimiser": moments}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        policy,
        optimiser,
        model_state_dict=state["policy"],
        optim_state_dict=state["optimiser"],
        options=options,
    )
