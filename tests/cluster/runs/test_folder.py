"""A run's folder: checked first, durable, and able to go back to a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.config import RunConfig, load_config
from cluster.runs import durable
from cluster.runs.folder import RunFolder
from cluster.runs.ledger import LedgerEntry
from speech.errors import UserError
from speech.records import Group, Prompt, PromptLayout, Reward, Trajectory, Utterance
from tests.small_disk import CannotMountError, small_disk


@pytest.fixture
def config() -> RunConfig:
    return load_config(None, ["name=demo", "model.path=m", "data.train=t.jsonl"])


def scored_group() -> Group:
    utterance = Utterance(id="u1", audio="/a/u1.opus", text="turn on the light", language="en")
    trajectories = tuple(
        Trajectory(
            prompt_id="0/u1",
            index=i,
            token_ids=(5, 6, 2),
            logprobs=(-0.1, -0.2, -0.3),
            version_first=3,
            version_last=4,
            finish_reason="stop",
            seed=9 + i,
            text=f"hypothèse {i}",
        )
        for i in range(2)
    )
    rewards = (
        Reward(total=0.75, parts={"accuracy": 0.75}, details={"accuracy/wer": 0.25}),
        Reward(total=None, invalid="judge timed out"),
    )
    prompt = Prompt(id="0/u1", utterance=utterance, epoch=0, position=0, seed=7)
    return Group(prompt, PromptLayout((1, 0, 0, 2), 1, 2), trajectories, 1.5, 0.4, rewards)


def test_layout_of_a_run(tmp_path: Path, config: RunConfig) -> None:
    with RunFolder(tmp_path / "runs", "demo") as folder:
        assert folder.open(config) is None
        folder.rewind(None)
        folder.metrics(1, {"reward/mean": 0.5, "learner/loss": float("nan"), "time/step": 1.0})
        folder.rollouts(1, [scored_group()], [[1e-5, None]])
        folder.text("transcripts", "**reference** x", 1)
        folder.audio("prompts/u1", np.zeros(160, np.float32), 16000, 1)
        folder.summary({"status": "finished", "steps": 1, "after": {"wer": 0.25}})
    path = tmp_path / "runs" / "demo"
    assert load_config(path / "config.yaml") == config
    assert durable.read(path / "metrics.jsonl") == [
        {"step": 1, "reward/mean": 0.5, "learner/loss": None, "time/step": 1.0}
    ]
    (line,) = durable.read(path / "rollouts" / "step-000001.jsonl")
    assert (line["prompt"], line["audio"], line["reference"]) == ("0/u1", "/a/u1.opus", "turn on the light")
    assert line["samples"][0] == {
        "text": "hypothèse 0",
        "language": None,
        "tokens": 3,
        "finish_reason": "stop",
        "versions": [3, 4],
        "seed": 9,
        "reward": 0.75,
        "parts": {"accuracy": 0.75},
        "details": {"accuracy/wer": 0.25},
        "invalid": None,
        "logprob_gap": 1e-5,
    }
    assert line["samples"][1]["invalid"] == "judge timed out"
    assert line["samples"][1]["reward"] is None
    assert json.loads((path / "summary.json").read_text())["after"] == {"wer": 0.25}
    assert any(f.name.startswith("events.out.tfevents") for f in (path / "tensorboard").iterdir())


def test_unwritable_folder(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/runs/demo: cannot write: Not a directory"):
        RunFolder(tmp_path / "file" / "runs", "demo").open(config)
    (tmp_path / "demo").write_text("")
    with pytest.raises(UserError, match="demo: cannot write: File exists"):
        RunFolder(tmp_path, "demo").open(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path, config: RunConfig) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        RunFolder(tmp_path, "demo").open(config)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot write: no space left"):
        durable.append(tmp_path / "metrics.jsonl", [{"step": 1}])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_full_disk_does_not_hide_why_a_run_ends(tmp_path: Path, config: RunConfig) -> None:
    try:
        with small_disk(tmp_path / "disk", 1):
            with pytest.raises(ZeroDivisionError) as caught, RunFolder(tmp_path / "disk", "demo") as folder:
                folder.open(config)
                folder.metrics(1, {"x": 1.0})  # TensorBoard's file is flushed by a thread, or at the end
                with pytest.raises(OSError, match="No space left"):
                    (tmp_path / "disk" / "ballast").write_bytes(bytes(2**21))
                folder._tensorboard.add_text("t", "x" * 10_000, 1)  # type: ignore[union-attr]
                raise ZeroDivisionError
            assert "no space left" in caught.value.__notes__[0]
            (tmp_path / "disk" / "ballast").unlink()
            with RunFolder(tmp_path / "disk", "demo") as folder:  # nobody holds it any more
                folder.open(config)
    except CannotMountError as error:
        pytest.skip(str(error))


def test_another_configuration_is_refused_once_there_are_results(tmp_path: Path, config: RunConfig) -> None:
    other = load_config(None, ["name=demo", "model.path=m2", "data.train=t.jsonl", "learner.lr=1"])
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
    with RunFolder(tmp_path, "demo") as folder:  # nothing was trained yet
        folder.open(other)
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
        folder.metrics(1, {"x": 1.0})
    before = (tmp_path / "demo" / "config.yaml").read_text()
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path, "demo").open(other)
    assert "model.path: 'm' → 'm2'" in str(caught.value)
    assert "learner.lr: 1e-05 → 1.0" in str(caught.value)
    assert (tmp_path / "demo" / "config.yaml").read_text() == before
    with RunFolder(tmp_path, "demo") as folder:  # what may change
        folder.open(replace(config, steps=7, ray=replace(config.ray, num_cpus=2)))
        assert folder.changed == ["ray.num_cpus: None → 2", "steps: 100 → 7"]
    assert load_config(tmp_path / "demo" / "config.yaml").steps == 7


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("engines.count=1", "engines.count: 2 → 1, which may change results by rounding"),
        ("encoder.threads=4", "encoder.threads: 1 → 4, which may change results by rounding"),
        ("learner.gpus_per_rank=1", "learner.gpus_per_rank: 0.0 → 1.0, which may change results by rounding"),
        ("engines.generate_timeout_s=60", "engines.generate_timeout_s: 1800.0 → 60.0"),
        ("data.on_bad=skip", "data.on_bad: 'error' → 'skip'"),
        ("placement=colocated", "placement: 'disaggregated' → 'colocated', which may change results by rounding"),
        ("engines.dtype=bfloat16", None),
        ("sampling.temperature=0.5", None),
        ("staleness=1", None),
        ("rewards.sound.silence_peak=0.5", None),
    ],
)
def test_what_a_resumed_run_may_set_anew(tmp_path: Path, override: str, line: str | None) -> None:
    given = ["name=demo", "model.path=m", "data.train=t.jsonl", "engines.count=2", "learner.loss.importance_cap=2"]
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(load_config(None, given))
        folder.metrics(1, {"x": 1.0})
    with RunFolder(tmp_path, "demo") as folder:
        if line is None:
            with pytest.raises(UserError, match=override.partition("=")[0]):
                folder.open(load_config(None, [*given, override]))
        else:
            folder.open(load_config(None, [*given, override]))
            assert folder.changed == [line]


def test_a_run_of_an_earlier_release_lacks_later_keys(tmp_path: Path, config: RunConfig) -> None:
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
        folder.metrics(1, {"x": 1.0})
    file = tmp_path / "demo" / "config.yaml"
    text = file.read_text()
    assert "zero_variance: drop\n" in text
    file.write_text(text.replace("  zero_variance: drop\n", ""))
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
        assert folder.changed == []
    file.write_text(text.replace("  zero_variance: drop\n", ""))
    other = load_config(None, ["name=demo", "model.path=m", "data.train=t.jsonl", "learner.zero_variance=keep"])
    with pytest.raises(UserError, match=r"learner\.zero_variance: 'drop' → 'keep'"):
        RunFolder(tmp_path, "demo").open(other)


def test_one_process_at_a_time(tmp_path: Path, config: RunConfig) -> None:
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
        with pytest.raises(UserError, match="another process is training"):
            RunFolder(tmp_path, "demo").open(config)
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)


def test_the_lock_dies_with_its_process(tmp_path: Path, config: RunConfig) -> None:
    program = (
        "import os, signal, sys\n"
        "from cluster.config import load_config\n"
        "from cluster.runs.folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1], 'demo')\n"
        "folder.open(load_config(None, ['name=demo', 'model.path=m', 'data.train=t.jsonl']))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -9
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)


def test_rewind_drops_later_steps_and_torn_lines(tmp_path: Path, config: RunConfig) -> None:
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
        folder.rewind(None)
        for step in range(1, 6):
            folder.metrics(step, {"reward/mean": float(step)})
            folder.rollouts(step, [])
            folder.ledger.append(step, [LedgerEntry(f"0/u{step}", "trained")])
        folder.summary({"status": "finished"})
    with (tmp_path / "demo" / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 6, "x": "é'.encode()[:-1])  # cut inside a character
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
        folder.rewind(3)
        assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3]
        assert sorted(f.name for f in (folder.path / "rollouts").iterdir()) == [
            f"step-{step:06d}.jsonl" for step in (1, 2, 3)
        ]
        assert folder.ledger.audit(["u1", "u2", "u3"], 1).exact
        assert not (folder.path / "summary.json").exists()
        folder.metrics(4, {"reward/mean": 4.0})
        assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not valid JSON"):
        durable.read(path)


def test_checkpoints(tmp_path: Path, config: RunConfig) -> None:
    with RunFolder(tmp_path, "demo") as folder:
        folder.open(config)
        checkpoints = folder.checkpoints
        assert checkpoints.latest() is None
        for step in (5, 10, 15):
            staged = checkpoints.stage(step)
            with pytest.raises(FileNotFoundError, match=r"state\.json"):
                checkpoints.commit(step)
            (staged / "state.json").write_text("{}")
            assert checkpoints.commit(step) == checkpoints.folder(step)
        checkpoints.prune(2)
        assert checkpoints.steps() == [10, 15]
        checkpoints.stage(20)  # killed while writing
        (checkpoints.path / "step-000025").mkdir()  # killed while removing
        assert checkpoints.latest() == 15
    with RunFolder(tmp_path, "demo") as folder:
        assert folder.open(config) == 15
        assert sorted(f.name for f in folder.checkpoints.path.iterdir()) == ["step-000010", "step-000015"]
        staged = folder.checkpoints.stage(15)  # the same step again
        (staged / "state.json").write_text('{"again": true}')
        folder.checkpoints.commit(15)
        assert json.loads((folder.checkpoints.folder(15) / "state.json").read_text()) == {"again": True}


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize("text", [b"", b"\n", b"cut", b"one\ncut", b"one\ntwo\n", b"one\n\n\na long line that was cut"])
def test_mending_keeps_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, text: bytes) -> None:
    monkeypatch.setattr(durable, "_BLOCK", block)
    path = tmp_path / "file"
    path.write_bytes(text)
    durable.mend(path)
    assert path.read_bytes() == text[: text.rfind(b"\n") + 1]
