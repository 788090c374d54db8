"""Plug-ins are found by the names of their modules, and by `module:attribute`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from learner.registries import ADVANTAGES, POLICY_LOSSES
from rewards.registries import JUDGES, REWARDS, SPEAKER_MODELS
from speech.errors import UserError
from speech.runtime.registry import Registry

REGISTRIES = (ADVANTAGES, POLICY_LOSSES, REWARDS, JUDGES, SPEAKER_MODELS)


@pytest.fixture
def fruit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """A folder of three plug-ins, of which one registers under a name that is not its own, and one nothing."""
    folder = tmp_path / "orchard"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from speech.runtime.registry import Registry\nFRUIT = Registry('fruit', 'orchard')\n"
    )
    (folder / "apple.py").write_text("from orchard import FRUIT\n@FRUIT.register('apple')\ndef apple(): return 1\n")
    (folder / "pear.py").write_text("from orchard import FRUIT\n@FRUIT.register('peach')\ndef pear(): return 2\n")
    (folder / "stone.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("orchard").FRUIT
    for name in [name for name in sys.modules if name.split(".")[0] == "orchard"]:
        del sys.modules[name]


def test_names_are_those_of_the_modules_and_nothing_is_imported_for_them(fruit: Registry[Any]) -> None:
    assert list(fruit) == ["apple", "pear", "stone"] and len(fruit) == 3
    assert "apple" in fruit and "my.module:plum" in fruit and "plum" not in fruit
    assert "orchard.apple" not in sys.modules
    assert fruit.find("apple")() == 1


def test_mistakes_are_named(fruit: Registry[Any]) -> None:
    with pytest.raises(UserError, match="unknown fruit 'aple'; did you mean 'apple'"):
        fruit.find("aple")
    with pytest.raises(UserError, match="unknown fruit 'zzzz'; known are apple, pear, stone; your own is written"):
        fruit.find("zzzz")
    with pytest.raises(UserError, match=r"fruit 'orchard.apple:aple': 'orchard.apple' has no 'aple'; did you mean"):
        fruit.find("orchard.apple:aple")
    with pytest.raises(ValueError, match="must be registered by the module of its name"):
        fruit.find("pear")
    with pytest.raises(ValueError, match="registers no fruit 'stone'"):
        fruit.find("stone")


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_every_module_of_a_folder_registers_itself(registry: Registry[Any]) -> None:
    assert len(registry)
    for name in registry:
        assert callable(registry.find(name))


def test_naming_what_there_is_loads_no_model() -> None:
    code = (
        "import sys; from learner.registries import *; from rewards.registries import *\n"
        "assert [list(r) for r in (ADVANTAGES, POLICY_LOSSES, REWARDS, JUDGES, SPEAKER_MODELS)]\n"
        "assert not {'torch', 'transformers', 'faster_whisper', 'funasr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
