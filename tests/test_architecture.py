"""The rooms of the house: which package and which folder may import which (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "speech": set(),
    "rollout": {"speech"},
    "rewards": {"speech"},
    "learner": {"speech"},
    "cluster": {"speech", "rollout", "rewards", "learner"},
}
FLOORS = {
    "cluster": (
        ("cli",),
        ("commands",),
        ("token2text",),
        ("training",),
        ("evaluation",),
        ("system",),
        ("fleet",),
        ("report",),
        ("monitoring",),
        ("actors", "runs", "data", "jobs", "judges"),
        ("trackers",),
        ("sizing",),
        ("preflight",),
        ("config",),
    ),
    "learner": (
        ("gang",),
        ("actor",),
        ("rank",),
        ("losses",),
        ("spec", "token2text"),
        ("model", "metrics"),
        ("components",),
        ("batches", "config"),
        ("registries", "memory"),
    ),
    "rewards": (
        ("actor", "report", "server"),
        ("pipeline",),
        ("compose",),
        ("on_text", "on_sound"),
        ("over_http",),
        ("listening",),
        ("registry", "config", "shapes", "credit"),
        ("registries",),
    ),
    "rollout": (
        ("vllm_plugin", "actors"),
        ("engine", "vllm_process"),
        ("weights", "encoders", "environment"),
        ("leftovers",),
        ("config", "errors"),
    ),
    "speech": (
        ("preparation",),
        ("manifests", "families", "codecs", "edits"),
        ("audio", "text"),
        ("records", "containers"),
        ("runtime",),
        ("errors",),
    ),
}
"""The folders and top-level modules of each package, from the top floor to the ground. What stands on a floor imports
only from floors below; rooms on one floor do not know one another."""

SHELLS = {
    "rollout/actors.py",
    "rewards/actor.py",
    "learner/actor.py",
    "learner/gang.py",
}
"""The only modules outside `cluster` that may import Ray: thin actors around plain classes."""
PURE = (
    "cluster.actors.roster",
    "cluster.actors.scaling",
    "cluster.config",
    "cluster.data.prompts",
    "cluster.fleet.assignments",
    "cluster.fleet.health",
    "cluster.monitoring.phases",
    "cluster.monitoring.progress",
    "cluster.monitoring.watchdog",
    "cluster.runs.checkpoints",
    "cluster.runs.ledger",
    "cluster.sizing.estimate",
    "cluster.training.admission",
    "cluster.training.length_history",
    "cluster.training.metrics",
    "cluster.training.recovery",
)
"""Policy that must be right under failure, and mathematics: loads no Ray and no vLLM, so that it runs anywhere."""
LIGHT = (
    "cluster.cli",
    "cluster.config",
    "cluster.preflight",
    "cluster.commands.results.audit",
    "cluster.commands.results.compare",
    "cluster.commands.jobs",
    "cluster.commands.plan",
    "cluster.commands.results.report",
    "cluster.commands.results.top",
    "cluster.commands.train",
)
"""What a command needs before it does its work: loads no torch either, so that it answers at once."""


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, dotted module) of every import in a file, inside functions and `if TYPE_CHECKING` too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.append((node.lineno, module if _file(module) is not None else node.module or ""))
    return tuple(found)


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def wrong_imports(package: str, forbidden: set[str], allowed_in: set[str] | None = None) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in modules(package)
        if str(path.relative_to(ROOT)) not in (allowed_in or set())
        for line, module in imports(path)
        if module.split(".")[0] in forbidden
    ]


def loaded(*names: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds once these have been imported."""
    code = f"import sys, {', '.join(names)}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package: str) -> None:
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}
    assert not wrong_imports(package, forbidden | {"tests", "benchmarks", "assets"})


@pytest.mark.parametrize("package", FLOORS)
def test_folders_of_a_package_have_an_order(package: str) -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    rooms = {path.relative_to(ROOT / package).with_suffix("").parts[0] for path in modules(package)} - {"__init__"}
    assert rooms == floor_of.keys(), "every folder has its floor"
    wrong = []
    for path in modules(package):
        room = path.relative_to(ROOT / package).with_suffix("").parts[0]
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] != package or len(parts) == 1 or parts[1] == room:
                continue
            if floor_of[parts[1]] <= floor_of[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module}")
    assert not wrong


def test_no_file_is_in_a_circle() -> None:
    """Imports for type checkers alone count too."""
    graph = {
        path: {file for _, module in imports(path) if (file := _file(module)) is not None and file != path}
        for package in MAY_IMPORT
        for path in modules(package)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_folders_are_small(package: str) -> None:
    """A newcomer finds the door: a folder holds about a dozen files, a file about 300 lines."""
    for folder in {path.parent for path in modules(package)}:
        assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= 13, folder


@pytest.mark.parametrize("package", ["speech", "rewards", "learner", "rollout"])
def test_ray_only_in_thin_actors(package: str) -> None:
    assert not wrong_imports(package, {"ray"}, allowed_in=SHELLS)


@pytest.mark.parametrize("package", ["speech", "rewards", "learner", "cluster"])
def test_vllm_only_in_rollout(package: str) -> None:
    assert not wrong_imports(package, {"vllm"})


def test_what_pure_modules_load() -> None:
    assert not loaded(*PURE) & {"ray", "vllm"}


def test_what_commands_load_before_they_work() -> None:
    assert not loaded(*LIGHT) & {"ray", "vllm", "torch", "transformers"}


def test_rewards_on_text_load_no_torch() -> None:
    """Nor does the mechanism of the pools: an actor for which torch is not needed starts seconds earlier."""
    assert not loaded("rewards.actor", "cluster.actors.pool") & {"torch", "transformers", "vllm"}


def test_controller_loads_no_vllm() -> None:
    """The driver needs the actor classes, not what runs in them: vLLM costs seconds and half a gigabyte."""
    assert "vllm" not in loaded("cluster.training.policy_run", "rollout.engine.stats")
