"""What is read from disk or network is data: no unlimited unpickling, no YAML objects, no code from a checkpoint."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("speech", "rollout", "rewards", "learner", "cluster")

UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval"}
UNSAFE |= {"exec", "joblib.load", "shelve.open", "marshal.loads", "os.system"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def faults(source: str) -> Iterator[str]:
    """Each call that could run what a file says, as `line: call`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in UNSAFE or (name == "torch.load" and keyword(node, "weights_only") is not True):
            yield f"{node.lineno}: {name}"
        if any(k.arg == "trust_remote_code" and getattr(k.value, "value", True) is not False for k in node.keywords):
            yield f"{node.lineno}: trust_remote_code"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_read_can_run(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    found = [
        f"{file.relative_to(ROOT)}:{fault}" for file in files for fault in faults(file.read_text(encoding="utf-8"))
    ]
    assert files and not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=flag)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(faults(source))
    assert not list(faults("torch.load(f, weights_only=True)\nyaml.safe_load(f)\nload(p, trust_remote_code=False)"))
