"""Following a job whose server breaks off, is away for a while, or never comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from cluster.jobs.client import JobsClient, Limits, ServerAwayError
from cluster.jobs.following import Follower, status_of
from speech.errors import UserError
from tests.cluster.jobs.servers import JobsApi

PATIENT = Limits(connect=60, answer=60, away=120, retry=0.01, quiet=0.1)
IMPATIENT = Limits(connect=60, answer=60, away=0.2, retry=0.01, quiet=0.05)
LOG = "one\ntwo\nthree\nfour\n"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsApi]:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with JobsApi().running() as running:
        yield running


@pytest.mark.parametrize("faults", [[], [502, 503], [500, 404], [0, 0], [-1], [504, 0, 502]])
@pytest.mark.parametrize("breaks", [0, 3])
def test_a_log_is_printed_once_however_often_its_server_is_away(
    api: JobsApi, faults: list[int], breaks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    api.log, api.breaks, api.faults = LOG, breaks, list(faults)
    api.add("j", "RUNNING", "RUNNING", "RUNNING", "RUNNING", "SUCCEEDED", code=0)
    client = JobsClient(api.address, PATIENT)
    if -1 in faults:
        client.limits = dataclasses.replace(PATIENT, answer=1.0)
    job = Follower(client, "j").log()
    out, err = capsys.readouterr()
    assert status_of(job) == "SUCCEEDED" and out == LOG
    if -1 in faults:  # and more, where the machine is slow
        assert "no answer within 1 s; asking again for 120 s" in err and "answers again" in err
    elif faults:
        assert err.count("asking again for 120 s") == 1 and err.count("answers again") == 1
    else:
        assert err == ""


def test_a_server_that_stays_away_is_given_up(api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.log, api.faults = LOG, [503] * 10_000
    api.add("j", "RUNNING")
    with pytest.raises(ServerAwayError, match=r"it answers 503.*\nThat was so for 0 s\. Job j goes on if only the way"):
        Follower(JobsClient(api.address, IMPATIENT), "j").log()
    assert capsys.readouterr().out == LOG


def test_a_head_that_falls_silent_is_noticed(api: JobsApi) -> None:
    """As one whose machine vanished: its connections stay open, and nothing comes."""
    api.log, api.silent_log, api.faults = LOG, True, [-1] * 10_000
    api.add("j", "RUNNING")
    client = JobsClient(api.address, IMPATIENT)
    client.limits = dataclasses.replace(IMPATIENT, answer=0.2)
    with pytest.raises(ServerAwayError, match="no answer within"):
        Follower(client, "j").log()


def test_a_quiet_log_is_no_fault(api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.log, api.silent_log = LOG, True
    api.add("j", *["RUNNING"] * 5, "FAILED", code=3)
    assert Follower(JobsClient(api.address, IMPATIENT), "j").log().driver_exit_code == 3
    assert capsys.readouterr() == (LOG, "")


def test_a_log_is_shown_without_websockets_too(api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.log, api.websockets = LOG, False
    api.add("j", "RUNNING", "RUNNING", "HIDDEN")
    with pytest.raises(UserError, match="knows no job j any more"):
        Follower(JobsClient(api.address, IMPATIENT), "j").log()
    assert capsys.readouterr() == (LOG, ""), "before the end"


def test_another_head_in_its_place_is_said(api: JobsApi) -> None:
    client = JobsClient(api.address, PATIENT)
    with pytest.raises(UserError, match="knows no job j any more: another head"):
        Follower(client, "j").log()
    with pytest.raises(UserError, match="knows no job j any more"):
        Follower(client, "j").end(60)


def test_waiting_for_the_end_has_an_end(api: JobsApi) -> None:
    client = JobsClient(api.address, PATIENT)
    api.faults = [503, 0]
    api.add("j", "RUNNING", "STOPPED")
    assert status_of(Follower(client, "j").end(60)) == "STOPPED"
    api.add("k", "RUNNING")
    with pytest.raises(UserError, match="job k: asked to stop 0 s ago, it has not ended"):
        Follower(client, "k").end(0.1)
