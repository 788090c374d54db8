"""`speechrl merge`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster import cli
from speech.families import load_family
from tests.demo_checkpoint import write_demo_checkpoint


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [write_demo_checkpoint(tmp_path / f"m{seed}", seed=seed) for seed in range(3)]


def test_tensors_are_weighted_sums_and_the_result_is_a_model(models: list[Path], tmp_path: Path) -> None:
    (models[0] / "adapter").mkdir()
    (models[0] / "adapter" / "adapter_config.json").write_text("{}")
    (models[0] / "more").mkdir()
    (models[0] / "more" / "note").write_text("kept")
    names = [str(model) for model in models]
    assert cli.main(["merge", *names, "--weights", "1", "0.5", "-0.25", "--out", str(tmp_path / "sum")]) == 0
    a, b, c = map(tensors, models)
    for name, tensor in tensors(tmp_path / "sum").items():
        torch.testing.assert_close(tensor, a[name] + 0.5 * b[name] - 0.25 * c[name])
    assert (tmp_path / "sum" / "more" / "note").read_text() == "kept"
    assert not (tmp_path / "sum" / "adapter").exists(), "it belongs to one of them"
    family = load_family(tmp_path / "sum")
    assert family.text_ids("hello") == load_family(models[0]).text_ids("hello")
    loaded = dict(family.load_language_model().named_parameters())
    assert all(torch.equal(loaded[n], tensors(tmp_path / "sum")[f"language_model.{n}"]) for n in loaded)

    assert cli.main(["merge", *names[:2], "--out", str(tmp_path / "mean")]) == 0
    assert all(torch.equal(t, 0.5 * a[n] + 0.5 * b[n]) for n, t in tensors(tmp_path / "mean").items())


def test_other_cuts_and_types_are_added_in_float32(models: list[Path], tmp_path: Path) -> None:
    """The first one's types and files are kept; another may be in several files."""
    a, b = (tensors(model) for model in models[:2])
    save_file({n: t.bfloat16() for n, t in a.items()}, models[0] / "model.safetensors")
    cut = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(b)}
    for file in set(cut.values()):
        save_file({n: b[n] for n in b if cut[n] == file}, models[1] / file)
    (models[1] / "model.safetensors").unlink()
    (models[1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": cut}))
    assert cli.main(["merge", str(models[0]), str(models[1]), "--out", str(tmp_path / "x")]) == 0
    for name, tensor in tensors(tmp_path / "x").items():
        assert torch.equal(tensor, (0.5 * a[name].bfloat16().float() + 0.5 * b[name]).bfloat16()), name
    assert cli.main(["merge", str(models[1]), str(models[0]), "--out", str(tmp_path / "y")]) == 0
    again = load_file(tmp_path / "y" / "model-0.safetensors") | load_file(tmp_path / "y" / "model-1.safetensors")
    assert again.keys() == b.keys() and (tmp_path / "y" / "model.safetensors.index.json").is_file()


def test_what_cannot_be_added_up_is_said(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, other = str(models[0]), str(models[1]), tmp_path / "untied"
    write_demo_checkpoint(other, tied=False)
    narrow = tensors(models[2])
    name = "language_model.model.norm.weight"
    save_file(narrow | {name: narrow[name][:3].clone()}, models[2] / "model.safetensors")
    for arguments, message in (
        ([a, "--weights", "1"], "1 weights for 1 models"),
        ([a, b, "--weights", "1"], "1 weights for 2 models"),
        ([a, b, "--weights", "1", "nan"], "not a finite number"),
        ([a, str(other)], "only one of them has language_model.lm_head.weight"),
        ([a, str(models[2])], f"{name} has shape (3,), not (64,)"),
    ):
        assert cli.main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert cli.main(["merge", a, b, "--out", b]) == 2
    assert "exists already" in capsys.readouterr().err
    (models[1] / "adapter_config.json").write_text("{}")
    assert cli.main(["merge", a, b, "--out", str(tmp_path / "out")]) == 2
    assert "an adapter of its own" in capsys.readouterr().err
