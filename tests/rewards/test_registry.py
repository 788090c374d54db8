from __future__ import annotations

import re
from typing import Any

import pytest

from rewards.on_text.accuracy import Accuracy
from rewards.registries import REWARDS
from rewards.registry import PartScore, build_reward
from speech.errors import UserError


def test_built_in_rewards() -> None:
    assert set(REWARDS) >= {"accuracy", "hallucination", "keyword", "language_match", "no_stop"}
    assert build_reward("accuracy", {"shape": "exp", "cap": 2}) == Accuracy(shape="exp", cap=2.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("acuracy", {}, "unknown reward 'acuracy'; did you mean 'accuracy'?"),
        ("zzz", {}, "known are accuracy, diversity"),
        ("accuracy", {"shap": "exp"}, "shap: unknown key; did you mean 'shape'?"),
        (
            "accuracy",
            {"shape": "exq"},
            "`exact`, `neg_edits`, got 'exq'; did you mean `exp`?",
        ),
        ("accuracy", {"cap": "high"}, "cap: expected a number, got 'high'"),
        ("accuracy", {"cap": -1}, "cap is a positive number"),
        ("hallucination", {"loop": 1}, "loop: expected true or false, got 1"),
        ("hallucination", {"loop_repeats": 2.5}, "loop_repeats: expected a whole number, got 2.5"),
        ("keyword", {"vocabulary": "anna"}, "vocabulary: expected a list, got 'anna'"),
        ("keyword", {"vocabulary": [1]}, "vocabulary.0: expected text, got 1 (quote it to make it text)"),
        ("no_stop", {"weight": 1}, "reward 'no_stop': weight: unknown key"),
        ("no_such_module:f", {}, "cannot import 'no_such_module'"),
        ("tests.rewards.misbehaving_rewards:lenght", {}, "has no 'lenght'; did you mean 'length'?"),
        ("tests.rewards.misbehaving_rewards:not_a_reward", {}, "is a int, not a function or class"),
        ("tests.rewards.misbehaving_rewards:length", {"scal": 2}, "scal: unknown key; did you mean 'scale'?"),
        ("tests.rewards.misbehaving_rewards:dies_once", {}, "marker: required, but not given"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_reward(name, options)


def test_a_users_function_takes_options(make_group: Any) -> None:
    scores = build_reward("tests.rewards.misbehaving_rewards:length", {"scale": 2})(make_group("a", ["abc", ""]))
    assert [score.value for score in scores] == [6.0, 0.0]


def test_a_part_score_has_a_value_or_a_reason() -> None:
    for bad in ({}, {"value": 1.0, "invalid": "why"}):
        with pytest.raises(ValueError, match="either a value or a reason"):
            PartScore(**bad)  # type: ignore[arg-type]
