"""Names and labels for Prometheus, the dashboard that uses them, and the structured log."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.monitoring.logs import RunLog
from cluster.monitoring.prometheus import Exporter, Series, gauges, phase_seconds, totals

STEP = {
    "version": 4.0,
    "rollout/trajectories": 12.0,
    "rollout/tokens": 240.0,
    "rollout/audio_seconds": 31.5,
    "rollout/wer": 0.25,
    "reward/mean": 0.5,
    "reward/invalid": 0.0,
    "reward/zero_variance_share": 0.1,
    "reward_part/accuracy": 0.7,
    "reward_detail/accuracy/wer": 0.3,
    "staleness/0": 10.0,
    "staleness/1": 2.0,
    "logprob_gap/mean": 1e-6,
    "logprob_gap/max": 1e-5,
    "learner/entropy": 0.4,
    "learner/kl": 0.01,
    "learner/grad_norm": 1.0,
    "publish/probe_gap": 1e-5,
    "valid/wer": 0.2,
    "time/generate": 2.0,
    "time/learn": 1.0,
    "time/step": 4.0,
    "time/idle_fraction": 0.1,
    "time/tokens_per_second": 60.0,
}


def test_series_of_a_step() -> None:
    found = {(s.name, *s.labels.items()): s.value for s in gauges(STEP)}
    assert found["speechrl_rollout_wer",] == 0.25 and found["speechrl_time_step",] == 4.0
    assert found["speechrl_reward_part", ("reward", "accuracy")] == 0.7
    assert found["speechrl_reward_detail", ("detail", "accuracy/wer")] == 0.3
    assert found["speechrl_staleness", ("versions", "1")] == 2.0
    assert {s.labels["phase"]: s.value for s in phase_seconds(STEP)} == {"generate": 2.0, "learn": 1.0}
    assert {s.name: s.value for s in totals(STEP)}["speechrl_tokens_total"] == 240.0
    assert not any(s.name.startswith("speechrl_time_generate") for s in gauges(STEP))


@given(st.dictionaries(st.text(min_size=1, max_size=30), st.floats(allow_nan=False), max_size=8))
def test_names_are_prometheus_names(metrics: dict[str, float]) -> None:
    for series in gauges(metrics):
        assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", series.name)


def test_dashboard_asks_for_nothing_that_is_not_exported() -> None:
    dashboard = json.loads((Path(__file__).parents[3] / "deploy/grafana/speechrl.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = {name for text in expressions for name in re.findall(r"\bray_speechrl_\w+", text)}
    exported = {f"ray_{s.name}" for s in [*gauges(STEP), *totals(STEP)]} | {"ray_speechrl_step", "ray_speechrl_stalled"}
    exported |= {f"ray_speechrl_phase_seconds_{part}" for part in ("bucket", "sum", "count")}
    assert len(asked) >= 12 and asked <= exported, asked - exported
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) and all('run=~"$run"' in text for text in expressions)


def test_log_has_run_step_version_and_actor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path, "demo") as log:
        logging.getLogger("cluster.training.policy_run").info("before")
        log.at(3, 2)
        logging.getLogger("cluster.actors.roster").warning(
            "late „%s“", "x", extra={"actor": "reward-1", "phase": "reward"}
        )
        logging.getLogger("elsewhere").info("not ours")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"time": "cut off')  # by a full disk
    with pytest.raises(ValueError, match="broken"), RunLog(path, "demo"):  # resumed: added to
        raise ValueError("broken")
    logging.getLogger("cluster.training.policy_run").warning("after")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["message"], line["step"], line["version"], line["actor"]) for line in lines] == [
        ("before", 0, 0, "controller"),
        ("late „x“", 3, 2, "reward-1"),
        ("the run ends: ValueError: broken", 0, 0, "controller"),
    ]
    assert all(line["run"] == "demo" and line["time"].endswith("+00:00") for line in lines)
    assert lines[1]["phase"] == "reward" and lines[1]["level"] == "WARNING"
    assert "late" in capsys.readouterr().err


def test_gauges_are_set_again_until_a_step_has_others(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, float, dict[str, str]]] = []
    exporter = Exporter("demo")
    monkeypatch.setattr(exporter, "_set", lambda series: said.append((series.name, series.value, series.labels)))
    exporter.gauge(Series("speechrl_stalled", 0.0))
    exporter.step(1, {"reward/mean": 0.5, "valid/wer": 0.2, "staleness/0": 3.0, "staleness/1": 1.0})
    exporter.step(2, {"reward/mean": 0.6, "staleness/0": 4.0})
    said.clear()
    exporter.look()
    assert sorted(said) == [
        ("speechrl_reward_mean", 0.6, {}),
        ("speechrl_staleness", 4.0, {"versions": "0"}),
        ("speechrl_stalled", 0.0, {}),
        ("speechrl_step", 2, {}),
        ("speechrl_valid_wer", 0.2, {}),
    ]
