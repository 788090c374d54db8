"""The rooms of the house: which package may import which (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "speech": set(),
    "rollout": {"speech"},
    "rewards": {"speech"},
    "learner": {"speech"},
    "cluster": {"speech", "rollout", "rewards", "learner"},
}
SHELLS = {"rollout/actors.py", "rewards/actor.py", "rewards/workers.py", "learner/actor.py"}
"""The only modules outside `cluster` that may import Ray: thin actors around plain classes."""
PURE = {
    "cluster/admission.py",
    "cluster/config.py",
    "cluster/config_schema.py",
    "cluster/data.py",
    "cluster/health.py",
    "cluster/phases.py",
    "cluster/recovery.py",
    "cluster/scaling.py",
    "cluster/work.py",
}
"""Policy that must be right under failure, and mathematics: no Ray, no vLLM, so that it runs anywhere."""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package: str) -> None:
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in modules(package)
        for line, module in imports(path)
        if module.split(".")[0] in forbidden | {"tests", "benchmarks", "assets"}
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["speech", "rewards", "learner", "rollout"])
def test_ray_only_in_thin_actors(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules(package)
        if str(path.relative_to(ROOT)) not in SHELLS
        for line, module in imports(path)
        if module.split(".")[0] == "ray"
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["speech", "rewards", "learner", "cluster"])
def test_vllm_only_in_rollout(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules(package)
        for line, module in imports(path)
        if module.split(".")[0] == "vllm"
    ]
    assert not wrong


def test_pure_modules_are_pure() -> None:
    for name in PURE:
        assert not [m for _, m in imports(ROOT / name) if m.split(".")[0] in {"ray", "vllm"}], name


def test_controller_imports_no_vllm() -> None:
    """The driver needs the actor classes, not what runs in them: vLLM costs seconds and half a gigabyte."""
    import subprocess
    import sys

    code = "import sys, cluster.train, rollout.stats; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
