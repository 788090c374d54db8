"""The command: clear messages, exit codes, and an instant `--help`."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cluster import cli
from cluster.config import RunConfig
from speech.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a model and data that are nowhere, which nobody looks for."""
    monkeypatch.setattr("cluster.preflight.problems_here", lambda config: [])
    path = tmp_path / "run.yaml"
    path.write_text("name: demo\nmodel:\n  path: m\ndata:\n  train: t.jsonl\n")
    return str(path)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    """Replace a command's module, so that nothing is trained."""
    module = types.ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom cluster.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and "evaluate" in done.stdout


@pytest.mark.parametrize("command", "train evaluate compare audit config doctor plan serve-reward".split())
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"speechrl {command} " in capsys.readouterr().out.partition("examples:")[2]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("speechrl ")


def test_train_gets_the_resolved_configuration(run_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []

    def train(config: RunConfig) -> int:
        seen.append(config)
        return 3

    stand_in(monkeypatch, "cluster.commands.train", train=train)
    arguments = ["train", run_yaml, "steps=2", "--address", "ray://head:10001", "learner.lr=0.5"]
    assert cli.main(arguments) == 3
    assert (seen[0].steps, seen[0].ray.address, seen[0].learner.lr) == (2, "ray://head:10001", 0.5)


def test_a_plug_in_in_the_working_directory_is_found(tmp_path: Path, run_yaml: str) -> None:
    (tmp_path / "my_rewards.py").write_text("def mine(group): return []\n")
    speechrl = str(Path(sys.executable).with_name("speechrl"))
    command = [speechrl, "config", run_yaml, "rewards.items=[{name: my_rewards:mine}]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "my_rewards:mine" in done.stdout, done.stderr


def test_user_errors_are_messages(run_yaml: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", run_yaml, "setps=3"]) == 2
    captured = capsys.readouterr()
    assert "command line: setps: unknown key; did you mean `steps`?" in captured.err
    assert "Traceback" not in captured.err
    assert cli.main(["config", "absent.yaml"]) == 2
    assert "absent.yaml: no such configuration file" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(UserError("no such model"), 2), (KeyboardInterrupt(), 130)])
def test_exit_codes(run_yaml: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def train(config: RunConfig) -> int:
        raise error

    stand_in(monkeypatch, "cluster.commands.train", train=train)
    assert cli.main(["train", run_yaml]) == code


def test_other_errors_keep_their_traceback(run_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: RunConfig) -> int:
        raise ZeroDivisionError

    stand_in(monkeypatch, "cluster.commands.train", train=train)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", run_yaml])


def test_evaluate_passes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []

    def run_evaluation(args: argparse.Namespace) -> int:
        seen.append(args)
        return 0

    stand_in(monkeypatch, "cluster.commands.evaluate", run_evaluation=run_evaluation)
    assert cli.main(["evaluate", "--model", "m", "--manifest", "t.jsonl", "engines.count=2"]) == 0
    args = seen[0]
    assert (args.model, args.manifest, args.config, args.out) == ("m", "t.jsonl", None, None)
    assert args.overrides == ["engines.count=2"]


def test_every_command_has_its_function() -> None:
    """They are found by name when they are called."""
    _, commands = cli._parsers([])
    assert commands.keys() == cli._COMMANDS.keys() | {"train", "config"}
    for module, function in cli._COMMANDS.values():
        assert callable(getattr(importlib.import_module(f"cluster.commands.{module}"), function))


def test_prepare_is_delegated(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch,
        "cluster.commands.prepare",
        add_arguments=lambda parser: parser.add_argument("--data", required=True),
        run=lambda args: 0 if args.data == "d" else 1,
    )
    assert cli.main(["prepare", "--data", "d"]) == 0


def test_config_prints_yaml_and_reference(run_yaml: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", run_yaml, "steps=11"]) == 0
    assert "steps: 11" in capsys.readouterr().out
    assert cli.main(["config"]) == 0
    assert "???" in capsys.readouterr().out
    assert cli.main(["config", "--reference"]) == 0
    assert "| `learner.lr` |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["train"], ["trian", "x"], ["evaluate", "--model", "m"], []])
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_unknown_options_are_named(run_yaml: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", run_yaml, "--adress", "auto"])
    assert "--adress" in capsys.readouterr().err
