from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rollout.errors import PublicationError, WeightsLostError
from rollout.leftovers import free_leftovers
from rollout.weights import staging
from rollout.weights.shapes import checkpoint_shapes
from rollout.weights.staging import staged
from speech.errors import PhaseTimeoutError
from speech.runtime import owned_folders, shared_weights
from speech.runtime.shared_weights import WeightFolder
from speech.runtime.weights import WeightBucket, tensor_digest


def bucket(**tensors: torch.Tensor) -> WeightBucket:
    return WeightBucket.of(tensors)


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (staging, owned_folders, shared_weights):
        monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(owned_folders.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    return tmp_path


def test_buckets_become_files_and_vanish(shared_memory: Path) -> None:
    a, b = torch.randn(3, 4), torch.randn(5).bfloat16()

    async def use() -> None:
        async with staged([bucket(a=a), bucket(b=b)], {"a": (3, 4), "b": (5,)}, 10.0) as weights:
            first, second = (load_file(file) for file in weights.files)
            assert torch.equal(first["a"], a) and torch.equal(second["b"], b)
            assert weights.digests == {"a": tensor_digest(a), "b": tensor_digest(b)}
            # Not an orphan: its writer lives.
            free_leftovers()
            assert all(file.exists() for file in weights.files)

    asyncio.run(use())
    assert not list(shared_memory.iterdir())


def test_buckets_in_shared_memory_are_read_where_they_are(shared_memory: Path) -> None:
    """And stay there until the engine has loaded them, whatever the sender does meanwhile."""
    a, b = torch.randn(3, 4), torch.randn(5).bfloat16()
    sender = WeightFolder("node")
    buckets = [sender.add(bucket(a=a)), sender.add(bucket(b=b))]
    inodes = [shared.file.stat().st_ino for shared in buckets]

    async def use() -> None:
        async with staged(buckets, {"a": (3, 4), "b": (5,)}, 10.0) as weights:
            sender.remove()
            assert [file.stat().st_ino for file in weights.files] == inodes, "no copies"
            first, second = (load_file(file) for file in weights.files)
            assert torch.equal(first["a"], a) and torch.equal(second["b"], b)
            assert weights.digests == {"a": tensor_digest(a), "b": tensor_digest(b)}

    asyncio.run(use())
    assert not list(shared_memory.iterdir())


def test_weights_that_the_sender_has_given_up_are_lost(shared_memory: Path) -> None:
    sender = WeightFolder("node")
    shared = sender.add(bucket(a=torch.ones(2)))
    sender.remove()

    async def use() -> None:
        async with staged([shared], {"a": (2,)}, 10.0):
            raise AssertionError("not reached")

    with pytest.raises(WeightsLostError, match="given up"):
        asyncio.run(use())
    assert not list(shared_memory.iterdir())


def test_files_vanish_when_names_are_wrong(shared_memory: Path) -> None:
    async def use() -> None:
        async with staged([bucket(a=torch.ones(2))], {"a": (3,), "b": (1,)}, 10.0):
            raise AssertionError("not reached")

    with pytest.raises(PublicationError, match=r"missing b; a is \(2,\), not \(3,\)"):
        asyncio.run(use())
    assert not list(shared_memory.iterdir())


def test_a_slow_sender_is_named_and_its_files_vanish(shared_memory: Path) -> None:
    async def use() -> None:
        release = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow():  # type: ignore[no-untyped-def]
            yield bucket(a=torch.ones(2))
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
            yield bucket(b=torch.ones(2))

        with pytest.raises(PhaseTimeoutError, match=r"`staging the weights` did not end within 0\.3 s"):
            async with staged(slow(), {"a": (2,), "b": (2,)}, 0.3):
                raise AssertionError("not reached")
        release.set()
        await asyncio.sleep(0.1)

    asyncio.run(use())
    assert not list(shared_memory.iterdir())


def test_full_shared_memory_falls_back_to_a_temporary_folder(
    shared_memory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(staging, "fits_shared_memory", lambda size: False)
    monkeypatch.setattr(owned_folders.tempfile, "gettempdir", lambda: str(elsewhere))

    async def use() -> None:
        async with staged([bucket(a=torch.ones(2))], {"a": (2,)}, 10.0) as weights:
            assert weights.files[0].is_relative_to(elsewhere)

    asyncio.run(use())
    assert not list(elsewhere.iterdir())


def test_what_a_killed_engine_left_is_removed(shared_memory: Path) -> None:
    orphan = shared_memory / "speechrl-weights-dead"
    orphan.mkdir()
    (orphan / "weights.safetensors").write_bytes(b"x")
    (shared_memory / "of-somebody-else").mkdir()
    free_leftovers()
    assert [path.name for path in shared_memory.iterdir()] == ["of-somebody-else"]


def test_shapes_come_from_all_files_of_a_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2, 3)}, tmp_path / "model-00001.safetensors")
    save_file({"b": torch.ones(4)}, tmp_path / "model-00002.safetensors")
    assert checkpoint_shapes(tmp_path) == {"a": (2, 3), "b": (4,)}
