"""What a rank lets go of when it leaves its device."""

from __future__ import annotations

import weakref

import torch

from learner.batches.batch import Block
from learner.components.offload import DeviceOffloader
from learner.components.optimiser import adamw
from learner.config import LearnerConfig
from learner.model import attention


def test_leaving_lets_go_of_the_attention_plans() -> None:
    """They are built once per micro-batch and kept on the device; a device that is not the CPU is left in earnest."""
    plan = attention._plan((Block(0, 2, (3, 2)),), torch.device("cpu"))
    assert plan[0] is not None
    held = weakref.ref(plan[0].mask)
    optimiser = adamw(torch.nn.Linear(2, 2), LearnerConfig())
    offloader = DeviceOffloader(torch.device("meta"), [], optimiser, attention.forget_plans)
    del plan
    assert held() is not None
    offloader.offload()
    assert held() is None and not offloader.onloaded
