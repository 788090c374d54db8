"""What a checkpoint costs in host memory, in bytes of tensors: what is being written, and nothing twice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from learner.batches.plan import plan_updates
from learner.components import checkpoint
from learner.rank import LearnerRank
from learner.spec import RankSpec
from tests.learner.ranks import run_ranks
from tests.learner.test_rank import make_batch, make_spec


def bytes_alive() -> int:
    """Of all tensors in host memory that Python holds, each storage once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), DTensor) and thing.is_cpu:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def watched_save(learner: LearnerRank, folder: Path, save: Callable[[str], None]) -> dict[str, float]:
    """Save; what it held when the shards and the export were written, in sizes of the model's parameters.

    Rank 0 also compares the export with the weights at the call.
    """
    whole = {name: p.detach().full_tensor().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]
    size = sum(tensor.numel() * tensor.element_size() for tensor in whole.values())
    learner.optimiser.zero_grad(set_to_none=True)
    held, before = {}, bytes_alive()
    write, export = checkpoint.dcp.save, learner.family.export

    def saves(*args: object, **settings: object) -> object:
        held["shards"] = (bytes_alive() - before) / size
        return write(*args, **settings)

    def exports(path: Path, states: dict[str, dict[str, torch.Tensor]]) -> None:
        held["export"] = (bytes_alive() - before) / size
        found = {f"{part}.{name}": tensor for part, tensors in states.items() for name, tensor in tensors.items()}
        assert found.keys() == whole.keys()
        assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
        export(path, states)

    checkpoint.dcp.save, learner.family.export = saves, exports  # type: ignore[method-assign, assignment]
    try:
        save(str(folder))
        learner.writer.wait()
    finally:
        checkpoint.dcp.save, learner.family.export = write, export  # type: ignore[method-assign]
    return held


def update(learner: LearnerRank, step: int) -> None:
    groups, audio = make_batch(seed=step)
    learner.update(step, plan_updates(groups, [], 1, learner.world_size)[learner.rank], audio)


def save_and_go_on(learner: LearnerRank, folder: str) -> None:
    learner.save(folder, background=True)
    update(learner, 2)


def run_rank(rank: int, world: int, meeting: str, spec: RankSpec, out: str) -> None:
    learner = LearnerRank(spec, rank, world, f"file://{meeting}")
    update(learner, 1)
    folder = Path(out).parent
    found = {
        "waits": watched_save(learner, folder / "waits", learner.save),
        "uncopied": watched_save(learner, folder / "uncopied", partial(learner.save, background=True, copy=False)),
        "copied": watched_save(learner, folder / "copied", partial(learner.save, background=True)),
        "goes on": watched_save(learner, folder / "goes-on", partial(save_and_go_on, learner)),
    }
    torch.save(found, f"{out}-{rank}")
    learner.close()


def measured(world: int, model: Path, folder: Path) -> list[dict[str, dict[str, float]]]:
    run_ranks(run_rank, world, world, str(folder / "meet"), make_spec(model), str(folder / "out"))
    return [torch.load(folder / f"out-{rank}", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpoint_holds_nothing_twice(world: int, sharp_checkpoint: Path, tmp_path: Path) -> None:
    ranks = measured(world, sharp_checkpoint, tmp_path)
    shard = 3 / world  # weights and two moments
    gathered = 0 if world == 1 else 1
    for rank, found in enumerate(ranks):
        for how in ("waits", "uncopied"):
            assert found[how]["shards"] == pytest.approx(0, abs=0.05)
        assert found["copied"]["shards"] == pytest.approx(shard, abs=0.1)
        if rank == 0:
            for how in ("waits", "uncopied"):
                assert found[how]["export"] == pytest.approx(gathered, abs=0.05)
            # The copied moments are gone by then; of the copied weights one rank's export needs no copy.
            assert found["copied"]["export"] == pytest.approx(1 / world + gathered, abs=0.1)
            assert "export" in found["goes on"], "and it was of the weights before"
        else:
            assert all("export" not in held for held in found.values())
