"""What a user sees, with and without a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from cluster.monitoring.progress import TrainingDisplay

METRICS = {
    "reward/mean": 0.5,
    "reward_part/accuracy": 0.75,
    "rollout/wer": 0.25,
    "version": 3,
    "logprob_gap/max": 2e-5,
    "time/tokens_per_second": 1234.0,
    "time/generate": 1.5,
    "time/step": 2.0,
    "time/idle_fraction": 0.1,
}


def test_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with TrainingDisplay("demo", 20, every=10, console=Console(file=out, width=80)) as display:
        for step in range(1, 21):
            display.phase("generate")
            display.update(step, METRICS)
        display.message("saved [checkpoint]")
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "generate …",
        "step 1/20",
        "step 10/20",
        "step 20/20",
        "saved [checkpoint]",
    ]
    for text in ("reward 0.500", "accuracy 0.750", "WER 25.0%", "tokens/s 1,234", "seconds 2.0 (generate 1.5)"):
        assert text in lines[1]


def test_live_display_in_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with TrainingDisplay("demo [1]", 2, console=console) as display:
        display.start_at(1)
        display.phase("learn")
        display.update(2, METRICS)
    text = out.getvalue()
    assert "demo [1]" in text and "2/2" in text and "accuracy" in text and "generate" in text
