"""Processes of a test that are the ranks of one group."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from learner.batches.batch import TrainGroup
from learner.batches.packing import totals
from learner.batches.plan import plan_updates
from learner.losses.sums import ONE, is_one_sum
from learner.rank import LearnerRank
from learner.spec import RankSpec
from speech.records import EncodedAudio


def run_ranks(function: Callable[..., object], ranks: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in a new process for each rank, and wait for them.

    Raises:
        ProcessRaisedException: one of them raised.
        ProcessExitedException: one of them died.
    """
    # Forked from a process that has imported torch and transformers once, and started no thread: seconds for each rank.
    mp.get_context("forkserver").set_forkserver_preload(["learner.rank", "tests.learner.test_rank"])
    mp.start_processes(_run_and_leave, (function, arguments), nprocs=ranks, start_method="forkserver")


def keep_gradients(module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """A dictionary that each update fills with its full gradients by parameter, clipped, as AdamW sees them.

    A collective at each update. Parameters that got no gradient are left out.
    """
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.full_tensor().clone()  # type: ignore[union-attr, operator]

    optimiser.register_step_pre_hook(keep)
    return gradients


def assert_streamed_as_whole(
    spec: RankSpec, groups: Sequence[TrainGroup], audio: Mapping[int, EncodedAudio], folder: Path
) -> None:
    """A step whose groups come one by one makes the update of the step that is learned from as a whole."""
    assert is_one_sum(spec)
    results = []
    for streamed in (False, True):
        learner = LearnerRank(spec, 0, 1, f"file://{folder / str(streamed)}")
        gradients = keep_gradients(learner.policy, learner.optimiser)
        if streamed:
            for place, group in enumerate(groups):
                share = replace(plan_updates([group], [], 1, 1)[0][0], totals=ONE)
                learner.accumulate(1, share, audio, first=place == 0)
            result = learner.finish(1, totals(groups).tokens, [], audio)
        else:
            result = learner.update(1, plan_updates(groups, [], 1, 1)[0], audio)
        learner.close()
        results.append({"gradients": gradients, "metrics": result.metrics})
    assert_same_update(*results, rtol=1e-5)


def assert_same_update(a: dict[str, Any], b: dict[str, Any], rtol: float) -> None:
    """`gradients` (of `keep_gradients`) and `metrics` of two updates are the same but for rounding."""
    assert a["gradients"].keys() == b["gradients"].keys() and a["gradients"]
    for name, gradient in a["gradients"].items():
        torch.testing.assert_close(b["gradients"][name], gradient, rtol=rtol, atol=1e-5, msg=name)
    assert a["metrics"].keys() == b["metrics"].keys()
    for name, value in a["metrics"].items():
        assert b["metrics"][name] == pytest.approx(value, abs=1e-5, rel=rtol), name


def _run_and_leave(rank: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Leave without Python's finalisation, as our ranks do: Ray kills them.

    gloo's threads outlive `destroy_process_group` (the mesh and DTensor's caches hold the group), and one that the
    system has not let run since its last collective still has a reference to a tensor. To drop it needs the GIL, and
    a thread that asks for the GIL during finalisation aborts the process (pytorch/pytorch#190489).
    """
    function(rank, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
