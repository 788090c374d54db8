"""What of the learner a configuration chooses by name. Imports no torch: reading a configuration takes no second."""

from __future__ import annotations

from typing import Any

from speech.runtime.registry import Registry

POLICY_LOSSES: Registry[Any] = Registry("policy loss", "learner.losses.policy")
"""`learner.loss.name`: functions with the keyword arguments of `learner.losses.policy.grpo`."""

ADVANTAGES: Registry[Any] = Registry("advantage", "learner.batches.advantages")
"""`learner.advantage`: functions from the valid rewards of a group, (n,) with n ≥ 2, to advantages (n,)."""
