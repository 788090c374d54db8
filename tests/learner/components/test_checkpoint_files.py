"""DCP on the disk: written beside the training, read on another number of ranks, and as data only."""

from __future__ import annotations

import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from learner.batches.plan import plan_updates
from learner.components import checkpoint
from learner.rank import LearnerRank
from learner.spec import RankSpec
from speech.errors import UserError
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.ranks import run_ranks
from tests.learner.test_rank import make_batch, make_spec


def update(learner: LearnerRank, step: int, world: int = 1) -> None:
    groups, audio = make_batch(seed=step)
    learner.update(step, plan_updates(groups, [], 1, world)[learner.rank], audio)


def weights(learner: LearnerRank) -> dict[str, torch.Tensor]:
    return {name: p.full_tensor().detach().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]


def run_rank(rank: int, world: int, meeting: str, spec: RankSpec, folder: str, out: str) -> None:
    """Resume on `world` ranks, go on for a step, and store the weights before and after it."""
    learner = LearnerRank(spec, rank, world, f"file://{meeting}")
    learner.load(folder)
    before = weights(learner)
    update(learner, 2, world)
    after = weights(learner)
    learner.save(f"{folder}-{world}")
    if rank == 0:
        torch.save({"before": before, "after": after}, out)
    learner.close()


def resume(tmp_path: Path, spec: RankSpec, folder: Path, world: int) -> dict[str, dict[str, torch.Tensor]]:
    name = f"{folder.name}-{world}"
    out = tmp_path / f"out-{name}"
    run_ranks(run_rank, world, world, str(tmp_path / f"meet-{name}"), spec, str(folder), str(out))
    return torch.load(out, weights_only=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RankSpec:
    return make_spec(write_demo_checkpoint(tmp_path_factory.mktemp("rank") / "model", scale=2.0))


@pytest.fixture(scope="module")
def saved(spec: RankSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of one rank, and its weights. Training went on while it was written."""
    folder = tmp_path_factory.mktemp("saved")
    learner = LearnerRank(spec, 0, 1, f"file://{folder / 'meet'}")
    update(learner, 1)
    expected = weights(learner)
    learner.save(str(folder / "one"), background=True)
    update(learner, 2)  # what is written is the state before this
    assert not all(torch.equal(expected[name], now) for name, now in weights(learner).items())
    learner.writer.wait()
    assert learner.saved()
    learner.close()
    return folder / "one", expected


@pytest.mark.slow
def test_resume_on_another_number_of_ranks(
    spec: RankSpec, saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, expected = saved
    one, two = (resume(tmp_path, spec, folder, world) for world in (1, 2))
    for name, tensor in expected.items():
        assert torch.equal(one["before"][name], tensor) and torch.equal(two["before"][name], tensor), name
        # The next update needs the moments too.
        torch.testing.assert_close(two["after"][name], one["after"][name], rtol=1e-4, atol=1e-5, msg=name)
    back = resume(tmp_path, spec, Path(f"{folder}-2"), 1)
    assert all(torch.equal(back["before"][name], two["after"][name]) for name in expected), "and back again"


def test_full_disk_is_a_message(spec: RankSpec, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("cannot mount a file system")
    try:
        learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
        update(learner, 1)
        learner.save(str(disk / "step"), background=True)
        with pytest.raises(UserError, match="cannot write the checkpoint"):
            learner.writer.wait()
        assert learner.saved(), "reported once"
        learner.save(str(tmp_path / "elsewhere"))
        update(learner, 2)
        learner.load(str(tmp_path / "elsewhere"))
        learner.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Malice:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_metadata_is_data(spec: RankSpec, saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    touched = tmp_path / "touched"
    (folder / "dcp" / ".metadata").write_bytes(pickle.dumps(Malice(touched)))
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    with pytest.raises(UserError, match="may not name"):
        learner.load(str(folder))
    assert not touched.exists()
    pickle.loads((folder / "dcp" / ".metadata").read_bytes())  # noqa: S301  (the attack works elsewhere)
    assert touched.exists()
    learner.close()


def test_metadata_stays_in_its_folder(tmp_path: Path, saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    reader = checkpoint._Reader(saved[0] / "dcp")
    metadata = reader.read_metadata()
    info = next(iter(metadata.storage_data.values()))
    info.relative_path = "../../elsewhere"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(pickle.UnpicklingError, match="outside the checkpoint"):
        checkpoint._Reader(tmp_path).read_metadata()
