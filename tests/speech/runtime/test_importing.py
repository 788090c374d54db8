"""Ours are found whatever lies in the working folder, and what lies there is found too: in the driver, in Ray's workers
and in their children."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from speech.errors import UserError
from speech.runtime import importing
from speech.runtime.importing import PACKAGES, ROOT, import_theirs, ours_first
from speech.runtime.registry import import_own

REWARD = """
from rewards.registry import PartScore

def my(group):
    return [PartScore(value=float(len(t.text))) for t in group.trajectories]
"""
SETTINGS = "name=n model.path=m data.train=t.jsonl ray.num_cpus=2 ray.object_store_mb=100".split()
EDITABLE = f"""
import importlib.util, runpy, sys
from importlib.machinery import PathFinder

class Editable:
    # As setuptools writes it for `pip install -e`: asked after sys.path.
    def find_spec(self, name, path=None, target=None):
        if name in {PACKAGES!r}:
            folder = {str(ROOT)!r} + "/" + name
            return importlib.util.spec_from_file_location(name, folder + "/__init__.py",
                                                          submodule_search_locations=[folder])

sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Editable())
sys.argv[0] = "speechrl"
"""
ENTRIES = {
    "python -m, on PYTHONPATH": ["-m", "cluster.cli"],
    "python -m, editable": [
        "-c",
        EDITABLE + "sys.path.insert(0, '')\nrunpy.run_module('cluster.cli', None, '__main__')",
    ],
    "speechrl, editable": ["-c", EDITABLE + "sys.path.remove('')\nfrom cluster.cli import main\nsys.exit(main())"],
}
RAY = """
import importlib.util, json, multiprocessing, sys
sys.path.append({root!r})
from cluster.actors.rewards import RewardPool
from cluster.actors.start import start_ray
from cluster.config import load_config
from tests.rewards.conftest import build_group

config = load_config(None, {settings!r} + ["rewards.items=[{{name: rewards:my}}, {{name: myreward:longer}}]"])
start_ray(config)
import ray

pool = RewardPool(config.rewards)
(group,) = pool.score([build_group("a", ["", "abc"])])
pool.close()

@ray.remote
def below():
    from speech.runtime.importing import ours_first

    ours_first()  # as the engine's actor does, before vLLM starts its processes
    with multiprocessing.get_context("spawn").Pool(1) as children:
        return [children.apply(importlib.util.find_spec, (name,)).origin for name in ("rollout", "speech")]

print("FOUND", json.dumps([[r.total for r in group.rewards], ray.get(below.remote())]))
"""


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A working folder with something of the name of each of our packages that can be outdone, and two rewards."""
    for folder in ("speech", "learner", "rollout"):
        (tmp_path / folder).mkdir()
    (tmp_path / "speech" / "a.wav").touch()
    (tmp_path / "rollout" / "__init__.py").write_text("raise RuntimeError('not ours')")
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "myreward.py").write_text(REWARD + "\nlonger = my\n")
    return tmp_path


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_command(entry: str, crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "PYTHONPATH" in entry:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    else:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    items = "rewards.items=[{name: rewards:my}, {name: myreward:longer}, {name: accuracy}]"
    command = [sys.executable, *ENTRIES[entry], "config", *SETTINGS[:3], items]
    (crowded / "run.yaml").write_text("{}")
    command.insert(command.index("config") + 1, "run.yaml")
    done = subprocess.run(command, cwd=crowded, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "rewards:my" in done.stdout, done.stderr
    command[-1] = "rewards.items=[{name: rewards:mi}]"
    done = subprocess.run(command, cwd=crowded, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "'rewards' has no 'mi'; did you mean 'my'?" in done.stderr, done.stderr


def test_actors_and_their_children(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of its own: what is tested is how it is started."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    program = RAY.format(root=str(ROOT), settings=SETTINGS)
    done = subprocess.run([sys.executable, "-c", program], cwd=crowded, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    totals, origins = json.loads(line.removeprefix("FOUND"))
    assert totals == [0.0, 6.0]
    assert origins == [str(ROOT / name / "__init__.py") for name in ("rollout", "speech")]


def test_folders_that_hold_our_names_go_behind_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "learner.py").touch()
    (tmp_path / "free").mkdir()
    taken, free = str(tmp_path / "taken"), str(tmp_path / "free")
    monkeypatch.setattr(sys, "path", [taken, free, str(ROOT)])
    ours_first()
    assert sys.path == [free, str(ROOT), taken]
    monkeypatch.setattr(sys, "path", [taken, free])
    ours_first()
    assert sys.path == [free, str(ROOT), taken]
    monkeypatch.setattr(sys, "path", [free])
    ours_first()
    assert sys.path == [free, str(ROOT)]


def test_modules_of_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards" / "house").mkdir(parents=True)
    (tmp_path / "rewards" / "mine.py").write_text("from rewards.registry import PartScore\nfrom .house import LIMIT\n")
    (tmp_path / "rewards" / "house" / "__init__.py").write_text("LIMIT = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importing, "_THEIRS", "_own_of_this_test")
    assert import_theirs("rewards.mine").LIMIT == 3
    assert import_theirs("rewards.registry").__name__ == "rewards.registry", "ours, since there is no such file"
    import rewards

    assert Path(rewards.__file__ or "").parent == ROOT / "rewards"


@pytest.mark.parametrize("name", [":my", "my:", ":"])
def test_half_a_name(name: str) -> None:
    with pytest.raises(UserError, match="your own is written module:attribute"):
        import_own("reward", name)
