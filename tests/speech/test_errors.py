"""Errors survive the way from an actor to the driver."""

from __future__ import annotations

import pickle

from speech.errors import InputError, Problem


def test_input_error_pickles_whole() -> None:
    problems = [Problem("a.jsonl", 3, "text", "is empty"), Problem("b.wav", None, None, "is missing")]
    error = pickle.loads(pickle.dumps(InputError("2 problems", problems, shown=1)))  # noqa: S301
    assert isinstance(error, InputError) and error.problems == tuple(problems)
    assert str(error) == "2 problems\n  a.jsonl:3: text: is empty\n  … and 1 more"
