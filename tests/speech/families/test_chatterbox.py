"""Chatterbox's folders are refused, with what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.preflight import problems_here
from speech.errors import UserError
from speech.families import load_family


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("t3_cfg.safetensors", "vLLM embeds a sampled token by its id alone"),
        ("t3_mtl23ls_v2.safetensors", "vLLM embeds a sampled token by its id alone"),
        ("t3_turbo_v1.safetensors", "output layer has a bias"),
    ],
)
def test_what_is_missing_is_said_before_a_run_starts(tmp_path: Path, file: str, reason: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=rf"{file} is Chatterbox's T3, .*{reason}"):
        load_family(tmp_path)
    config = load_config(None, ["name=c", f"model.path={tmp_path}", f"data.train={tmp_path / file}"])
    (found,) = [message for key, message in problems_here(config, training=True) if key == "model.path"]
    assert reason in found
