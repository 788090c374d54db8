"""Models that an installed package brings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rewards.config import JudgeConfig, SoundConfig
from rewards.listening.judge import build_judge, check_judge, check_second_judge
from rewards.listening.locations import model_path
from speech.errors import UserError
from tests.rewards.listening.sound_fixtures import ASR_DEMO


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose import would be noticed, with a link to the demo judge inside."""
    folder = tmp_path / "speech_models_of_a_test"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('was executed')\n", encoding="utf-8")
    (folder / "inner" / "model").symlink_to(Path(ASR_DEMO).resolve())
    (tmp_path / "single_file_of_a_test.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder.name


def test_a_folder_inside_a_package_is_found_without_importing_it(package: str, tmp_path: Path) -> None:
    assert model_path(f"package:{package}/inner/model", "k") == str(tmp_path / package / "inner" / "model")
    assert model_path(f"package:{package}", "k") == str(tmp_path / package)
    assert package not in sys.modules
    assert model_path("/models/whisper", "k") == "/models/whisper"
    judge = build_judge(JudgeConfig("demo", f"package:{package}/inner/model"))
    assert judge.states_likelihood


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:no_such_package_here/model", r"key: .*not installed; install it: pip install no-such-package-here"),
        ("package:{}/other", r"has no folder 'other'"),
        ("package:{}/../x", r"not of the form package:name/folder"),
        ("package:{}//etc", r"not of the form"),
        ("package:a.b/model", r"not of the form"),
        ("package:single_file_of_a_test/model", r"is a single module"),
    ],
)
def test_what_is_wrong_is_said(package: str, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_path(path.format(package), "key")


def test_it_is_found_out_before_anything_is_loaded(package: str) -> None:
    with pytest.raises(UserError, match=r"rewards\.sound\.judge\.path: .*not installed"):
        check_judge(JudgeConfig("demo", "package:no_such_package_here/model"))
    twice = SoundConfig(
        judge=JudgeConfig("demo", str(ASR_DEMO)), second_judge=JudgeConfig("demo", f"package:{package}/inner/model")
    )
    with pytest.raises(UserError, match="training judge again"):
        check_second_judge(twice)
