"""What travels with a job is known before it is sent: its size is Ray's, and what is missing or too large is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.jobs import upload
from cluster.jobs.upload import EXCLUDED, Upload, measure
from speech.errors import UserError


def write(folder: Path, *names: str, size: int = 1) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    (tmp_path / "environment" / "lib").mkdir(parents=True)
    write(tmp_path / "environment" / "lib", "torch.so")
    write(project, "cluster/cli.py", "configs/run.yaml", "assets/build/speech.py", "数据/a b.txt", size=1000)
    write(project, "runs/a/metrics.jsonl", ".git/HEAD", "build/x.o", "cluster/__pycache__/cli.pyc", ".mypy_cache/y")
    write(project, "speechrl.egg-info/PKG", "data/a.wav", "data/deep/b.wav", "data/list.txt", "notes.md", "venv/x")
    (project / ".gitignore").write_text("*.md\n")
    (project / "data" / ".rayignore").write_text("*.wav\n")
    (project / "empty").mkdir()
    (project / "dangling").symlink_to("nowhere")
    (project / ".venv").symlink_to(tmp_path / "environment")
    return project


TRAVELS = ["assets/build/speech.py", "cluster/cli.py", "configs/run.yaml", "data/list.txt", "数据/a b.txt"]


def test_what_travels(project: Path) -> None:
    found = measure(project)
    assert sorted(name for name in found.sizes if not name.endswith("ignore")) == TRAVELS
    assert found.empty == {"empty"}


def test_the_size_is_that_of_rays_package(project: Path, tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    excludes = [".git", ".venv", "venv", "__pycache__", *EXCLUDED]
    create_package(str(project), package, include_gitignore=True, excludes=excludes)
    assert measure(project).size == package.stat().st_size


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("configs/run.yaml", None),
        ("configs", None),
        (".", None),
        ("./configs/../data/list.txt", None),
        ("data/a.wav", "a pattern of .gitignore or .rayignore"),
        ("runs", "a pattern of .gitignore or .rayignore, or one of ours (.venv .git /runs"),
        ("notes.md", "a pattern"),
        ("absent", "is not in"),
        ("../data", "lies outside"),
    ],
)
def test_why_something_does_not_travel(project: Path, path: str, why: str | None) -> None:
    found = measure(project).lacks(path)
    assert found is None if why is None else (found is not None and why in found)


def test_an_upload_that_is_too_large_names_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "DASHBOARD_CLIENT_MAX_SIZE", 2**20)
    write(tmp_path, "data/audio/wav/a.wav", "data/audio/wav/b.wav", size=2**20)
    write(tmp_path, "models/m.bin", "small/x", size=300_000)
    write(tmp_path, "data/list.txt", "run.yaml")
    with pytest.raises(UserError) as found:
        measure(tmp_path).check_size()
    lines = str(found.value).splitlines()
    assert "2.6 MiB in 6 files would travel" in lines[0] and "takes 1.0 MiB at most" in lines[0]
    assert [line.split()[::2] for line in lines[1:4]] == [
        ["2.0", "data/audio/wav/"],
        ["0.3", "models/m.bin"],
        ["0.3", "small/x"],
    ]
    assert ".gitignore" in lines[-1] and "--no-upload" in lines[-1]


def test_the_limit_is_the_servers() -> None:
    size = 100 * 2**20
    overhead = 76 + 2 + 22
    Upload(Path(), {"x": size - overhead}, frozenset()).check_size()
    with pytest.raises(UserError, match="100\\.0 MiB in 1 files"):
        Upload(Path(), {"x": size - overhead + 1}, frozenset()).check_size()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_a_message(tmp_path: Path) -> None:
    write(tmp_path, "secret")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(UserError, match="secret: no permission to read it; name it in"):
        measure(tmp_path)


def test_a_folder_without_an_end_is_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a/b/x", "elsewhere/y")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "a" / "sideways").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"a/b/up: a link to a folder around it, in which there is no end; name it in"):
        measure(tmp_path)
    (tmp_path / ".gitignore").write_text("up\n")
    assert {"a/b/x", "a/sideways/y", "elsewhere/y"} <= measure(tmp_path).sizes.keys()
    assert caplog.records == []
