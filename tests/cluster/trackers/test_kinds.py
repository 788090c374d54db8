"""Each tracker's own library, offline: what is given to it can be read back from what it keeps on this machine."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest

from cluster.runs.folder import RunFolder
from tests.cluster.trackers.test_trackers import config

SOUND = np.sin(np.arange(1600) / 5).astype(np.float32)


def run_of(root: Path, tracker: str, steps: range, summary: bool = True) -> None:
    settings = config(tracker)
    with RunFolder(root, settings.name) as folder:
        folder.rewind(folder.open(settings))
        for step in steps:
            folder.metrics(step, {"reward/mean": step / 10, "learner/kl": float("nan")})
        folder.table("samples", ["reference", "reward"], [["turn on the light", 0.5], ["stop", None]], steps[-1])
        folder.audio("samples", SOUND, 16_000, steps[-1])
        if summary:
            folder.summary({"status": "completed", "steps": steps[-1], "after": {"wer": 0.25}})


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login of this machine, nothing outside of the test's folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def test_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    run_of(tmp_path, "mlflow", range(1, 3), summary=False)
    run_of(tmp_path, "mlflow", range(2, 4))  # resumed; step 2 is done again
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("speechrl").experiment_id])
    assert run.info.run_name == "demo" and run.info.status == "FINISHED"
    assert run.data.params["model.path"] == "m" and run.data.params["learner.loss.name"] == "grpo"
    history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "reward/mean")]
    assert history == [(1, 0.1), (2, 0.2), (2, 0.2), (3, 0.3)]
    assert run.data.metrics["summary/after.wer"] == 0.25 and "learner/kl" not in run.data.metrics
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "samples/step-000003.json")).read_text())
    assert table["data"] == [["turn on the light", 0.5], ["stop", None]]
    assert {f.path for f in client.list_artifacts(run.info.run_id, "samples")} >= {"samples/step-000003.flac"}


def test_wandb(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run_of(tmp_path, "wandb", range(1, 3), summary=False)
    run_of(tmp_path, "wandb", range(2, 4))
    known = json.loads((tmp_path / "demo" / "trackers.json").read_text())["wandb"]
    kept = sorted((tmp_path / "demo" / "wandb").glob(f"offline-run-*-{known}"))
    assert len(kept) == 2, "two executions, which `wandb sync` makes one run of"
    (table,) = (kept[-1] / "files" / "media" / "table").glob("samples_*.json")
    assert json.loads(table.read_text())["data"] == [["turn on the light", 0.5], ["stop", None]]
    (sound,) = (kept[-1] / "files" / "media" / "audio").glob("samples_*.wav")
    with wave.open(str(sound)) as file:
        assert (file.getframerate(), file.getnframes()) == (16_000, len(SOUND))
    assert wandb.run is None


def test_trackio(tmp_path: Path) -> None:
    trackio = pytest.importorskip("trackio")
    run_of(tmp_path, "trackio", range(1, 3), summary=False)
    run_of(tmp_path, "trackio", range(2, 4))
    logs = trackio.SQLiteStorage.get_logs("speechrl", "demo")
    rewards = [(line["step"], line["reward/mean"]) for line in logs if "reward/mean" in line]
    assert sorted(rewards) == [(1, 0.1), (2, 0.2), (2, 0.2), (3, 0.3)]
    assert any(line.get("summary/after.wer") == 0.25 for line in logs)
    assert {"samples"} <= {key for line in logs for key in line}
