from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.soak import WARM_UP_S, lives_of, manifest, plan_of, slope


def life(growth: float, level: float, seed: int) -> tuple[list[float], list[float]]:
    hours = np.linspace(0, 0.5, 60)
    noise = np.random.default_rng(seed).normal(0, 0.5, 60)
    return list(hours), list(level + growth * hours + noise)


def test_growth_is_found_whatever_the_levels_of_single_processes() -> None:
    found = slope([life(20.0, level, seed) for seed, level in enumerate((500.0, 450.0, 400.0))])
    assert found.lives == 3 and found.grows and found.per_hour == pytest.approx(20, abs=3 * found.error)
    flat = slope([life(0.0, level, seed) for seed, level in enumerate((400.0, 450.0, 500.0))])
    assert not flat.grows and flat.per_hour == pytest.approx(0, abs=3 * flat.error), "levels are no growth"


def test_one_life_has_no_error_and_too_short_ones_no_slope() -> None:
    alone = slope([life(0.0, 100.0, 0), ([1.0], [5.0])])
    assert alone.lives == 1 and math.isnan(alone.error) and not alone.grows
    assert slope([]).lives == 0 and not slope([]).grows


def test_a_process_counts_once_it_is_warm() -> None:
    def row(pid: str, age: float, piece: int = 0) -> dict[str, str]:
        return {"role": "r", "pid": pid, "age": str(age), "piece": str(piece), "time": "3600", "mb": "2", "files": "3"}

    samples = [row("1", WARM_UP_S - 1), row("1", WARM_UP_S), row("1", WARM_UP_S, 1), row("2", WARM_UP_S, 1)]
    assert lives_of(samples, "r", "mb") == [([1.0], [2.0])] * 3
    assert lives_of(samples, "other", "mb") == []


def test_a_piece_has_its_faults_in_its_own_steps() -> None:
    plan = plan_of(piece=3, first=100, steps=50, seconds=1800.0, every=180.0, seed=0)
    assert len(plan) == 10 and all(101 < fault.step <= 150 for fault in plan)
    assert plan == plan_of(3, 100, 50, 1800.0, 180.0, 0) != plan_of(4, 100, 50, 1800.0, 180.0, 0)
    assert plan_of(0, 0, 50, 0.0, 180.0, 0) == plan_of(1, 50, 50, 1800.0, 0.0, 0) == []


def test_a_share_of_the_utterances_is_spoiled(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest(tmp_path, 0.01).read_text(encoding="utf-8").splitlines()]
    bad = [line for line in lines if Path(line["audio"]).parent == tmp_path / "bad"]
    assert len(bad) == len(lines) // 100 == len(list((tmp_path / "bad").iterdir()))
    assert all(Path(line["audio"]).is_file() for line in lines)
    for line in bad:
        assert soundfile.info(line["audio"]).duration == pytest.approx(line["duration"], abs=0.01), (
            "its header is sound"
        )
        with pytest.raises(soundfile.LibsndfileError):
            soundfile.read(line["audio"])
    manifest(tmp_path, 0.0)
    assert "bad" not in (tmp_path / "manifest.jsonl").read_text(encoding="utf-8")
