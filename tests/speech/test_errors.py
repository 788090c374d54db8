"""Errors survive the way from an actor to the driver."""

from __future__ import annotations

import pickle

import pytest

from speech.errors import InputError, PhaseTimeoutError, Problem


def test_input_error_pickles_whole() -> None:
    problems = [Problem("a.jsonl", 3, "text", "is empty"), Problem("b.wav", None, None, "is missing")]
    error = pickle.loads(pickle.dumps(InputError("2 problems", problems, shown=1)))  # noqa: S301
    assert isinstance(error, InputError) and error.problems == tuple(problems)
    assert str(error) == "2 problems\n  a.jsonl:3: text: is empty\n  … and 1 more"


def test_a_time_out_pickles_whole() -> None:
    error = PhaseTimeoutError("publish", 30.0, "engine 0 is stale")
    error.add_note("in phase `publish` of step 3")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(copy) == str(error) == "phase `publish` did not end within 30 s: engine 0 is stale"
    assert (copy.phase, copy.seconds, copy.detail) == ("publish", 30.0, "engine 0 is stale")
    assert copy.__notes__ == error.__notes__
    assert isinstance(copy, TimeoutError) and copy.errno is None, "no errno is made of its arguments"


@pytest.mark.parametrize(("seconds", "shown"), [(1800.0, "1800 s"), (0.3, "0.3 s"), (299.8741, "299.9 s")])
def test_the_budget_of_a_time_out_is_readable(seconds: float, shown: str) -> None:
    assert str(PhaseTimeoutError("encode", seconds)) == f"phase `encode` did not end within {shown}"
