"""Names on the hub, from a cache laid out as huggingface_hub does it, without a network."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from cluster.cli import main
from cluster.config import load_config
from cluster.jobs.checks import check_travels
from cluster.jobs.upload import Upload
from cluster.preflight import problems_here
from learner.rank import LearnerRank
from speech.errors import UserError
from speech.families import load_family
from speech.runtime.hub import is_hub_name, model_folder, pinned
from tests.end_to_end.runs import write_config
from tests.learner.ranks import run_ranks
from tests.learner.test_rank import make_spec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/tiny-model"


def cached(cache: Path, model: Path, name: str = NAME, without: str = "") -> Path:
    """Put a model into a cache, its files as links to blobs; returns the snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for made in (folder / "refs", folder / "blobs", snapshot):
        made.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(model.iterdir())):
        if file.name != without:
            shutil.copy(file, folder / "blobs" / f"{number:064x}")
            (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub: the name of its host does not exist."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_what_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "one" / "model").mkdir(parents=True)
    for name in (NAME, "Qwen/Qwen3-ASR-0.6B", f"{NAME}@{COMMIT}", f"{NAME}@v1.0", f"assets/model@{COMMIT}"):
        assert is_hub_name(name), name
    for path in ("model", "/a/b", "./a/b", "../a", "a/b/c", "assets/mistyped", "one/model", "new", "a b/c", "~/a"):
        assert not is_hub_name(path), path


def test_a_cached_model_needs_no_network(cache: Path, demo_checkpoint: Path) -> None:
    snapshot = cached(cache, demo_checkpoint)
    assert model_folder(NAME) == model_folder(f"{NAME}@main") == model_folder(f"{NAME}@{COMMIT}") == snapshot
    assert pinned(NAME) == f"{NAME}@{COMMIT}"
    assert pinned(str(demo_checkpoint)) == str(demo_checkpoint.resolve())


def test_a_model_that_cannot_be_fetched_is_said_in_seconds(cache: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        model_folder(NAME)
    assert time.monotonic() - started < 30
    message = str(caught.value)
    assert f"{NAME!r} is no folder here" in message and f"not in the cache {cache}" in message
    assert f"`hf download {NAME}`" in message and "cannot be fetched from the hub: " in message


def test_half_a_model_in_the_cache_is_not_taken(cache: Path, demo_checkpoint: Path) -> None:
    cached(cache, demo_checkpoint, without="model.safetensors")
    with pytest.raises(UserError, match=r"only in part in the cache .* lacks model\.safetensors"):
        model_folder(NAME)


def test_a_model_that_is_not_cached_is_fetched(
    cache: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a stand-in; what it is asked for is looked at."""
    asked = []
    real = huggingface_hub.snapshot_download

    def download(name: str, **settings: object) -> str:
        if not settings["local_files_only"]:
            asked.append((name, settings["revision"], settings["allow_patterns"]))
            cached(cache, demo_checkpoint)
        return str(real(name, **(settings | {"local_files_only": True})))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = model_folder(NAME)
    assert (folder / "model.safetensors").is_file() and model_folder(NAME) == folder
    ((name, revision, patterns),) = asked
    assert (name, revision) == (NAME, None) and "*.safetensors" in patterns  # type: ignore[operator]
    assert not any(pattern in patterns for pattern in ("*", "*.bin", "*.py", "*.pt"))  # type: ignore[operator]


def test_a_configuration_with_a_name(
    cache: Path, tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, Path(NAME))
    (key, text), *others = problems_here(load_config(config))
    assert key == "model.path" and "cannot be fetched" in text and not others
    cached(cache, demo_checkpoint)
    assert problems_here(load_config(config)) == []
    assert main(["train", str(config), "--dry-run"]) == 0
    assert f"checked: configuration, {NAME}" in capsys.readouterr().out
    assert main(["plan", str(config)]) == 0


def test_a_name_need_not_travel_with_a_job(tmp_path: Path) -> None:
    config = write_config(tmp_path, Path(NAME))
    sizes = {str(file.relative_to(tmp_path)): file.stat().st_size for file in tmp_path.iterdir() if file.is_file()}
    upload = Upload(tmp_path.resolve(), sizes, frozenset())
    check_travels(upload, config.name, load_config(config))
    with pytest.raises(UserError, match=r"model\.path: tiny-model"):
        check_travels(upload, config.name, load_config(config, ["model.path=tiny-model"]))


def hold(rank: int, world: int, meeting: str, cache: str, out: str) -> None:
    constants.HF_HUB_CACHE = cache  # type: ignore[misc]
    learner = LearnerRank(make_spec(Path(f"{NAME}@{COMMIT}")), rank, world, f"file://{meeting}")
    (bucket,) = learner.weight_buckets(torch.float32, 10**9)
    torch.save(dict(bucket.tensors), out)
    learner.close()


def test_a_rank_finds_the_model_in_the_cache_of_its_node(tmp_path: Path, demo_checkpoint: Path) -> None:
    """Another cache than the driver's, which is empty."""
    cached(tmp_path / "node", demo_checkpoint)
    run_ranks(hold, 1, 1, str(tmp_path / "meet"), str(tmp_path / "node"), str(tmp_path / "out"))
    found = torch.load(tmp_path / "out", weights_only=True)
    expected = dict(load_family(demo_checkpoint).load_language_model().named_parameters())
    assert found.keys() >= expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
