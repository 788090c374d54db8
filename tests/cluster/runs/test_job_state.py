from __future__ import annotations

import pytest

from cluster.runs.job_state import JobState, announce, announced


@pytest.mark.parametrize(
    ("state", "saved"),
    [(JobState(12, 12), True), (JobState(12, 10), False), (JobState(12, None), False), (JobState(0, None), True)],
)
def test_what_is_announced_is_read_back(state: JobState, saved: bool, capsys: pytest.CaptureFixture[str]) -> None:
    announce(JobState(3, 3))
    announce(state)
    log = "starting …\n" + capsys.readouterr().out + "stopped after step 12; a checkpoint of it is saved\n"
    assert announced(log) == state and state.saved is saved


def test_a_log_without_a_whole_state_says_nothing() -> None:
    assert announced("") is None
    assert announced("stopped after step 12; a checkpoint of it is saved\n") is None, "what people read is not parsed"
    assert announced('speechrl-state {"step": 12, "chec') is None
    assert announced('speechrl-state {"phase": 1}\n') is None
