from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.on_text.accuracy import Accuracy
from speech.records import Group

SHAPES = ["one_minus", "tanh", "exp", "exp_power", "exact", "neg_edits"]
MakeGroup = Callable[..., Group]


def values(reward: Any, group: Group) -> list[float]:
    return [score.value for score in reward(group)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("one_minus", 0.75),
        ("tanh", 1 - math.tanh(0.75)),
        ("exp", math.exp(-0.625)),
        ("exp_power", math.exp(-12 * 0.125)),
        ("exact", 0.0),
        ("neg_edits", -1.0),
    ],
)
def test_shapes_at_one_error_in_four(make_group: MakeGroup, shape: Any, expected: float) -> None:
    group = make_group("turn the light on", ["turn the light off", "Turn the light on!"])
    wrong, right = values(Accuracy(shape=shape), group)
    assert wrong == pytest.approx(expected)
    assert right == (0.0 if shape == "neg_edits" else 1.0)


def test_cap(make_group: MakeGroup) -> None:
    group = make_group("stop", ["go", "go a b c d e f", ""])
    assert values(Accuracy(), group) == [0.0, 0.0, 0.0]
    assert values(Accuracy(cap=2.0), group) == [0.0, -1.0, 0.0]
    assert values(Accuracy(shape="neg_edits", cap=3.0), group) == [-1.0, -3.0, -1.0]
    assert Accuracy()(group)[1].details["error_rate"] == 7.0, "details are not capped"


def test_units(make_group: MakeGroup) -> None:
    assert values(Accuracy(), make_group("打开灯", ["打开门"], language="zh")) == [pytest.approx(2 / 3)]
    assert values(Accuracy(unit="character"), make_group("red", ["bed"])) == [pytest.approx(2 / 3)]


def test_silence(make_group: MakeGroup) -> None:
    assert values(Accuracy(), make_group("", ["", "hello"])) == [1.0, 0.0]


@given(
    st.lists(st.text(alphabet="abc 12打开", max_size=12), min_size=1, max_size=5),
    st.text(alphabet="abc 12打开", max_size=12),
    st.sampled_from(SHAPES),
    st.sampled_from(["en", "zh", None]),
)
def test_identity_is_best_and_order_is_kept(
    make_group: MakeGroup, hypotheses: list[str], reference: str, shape: Any, language: str | None
) -> None:
    reward = Accuracy(shape=shape)
    scores = values(reward, make_group(reference, [*hypotheses, reference], language=language))
    assert scores[-1] == max(scores) == (0.0 if shape == "neg_edits" else 1.0)
    backwards = values(reward, make_group(reference, [reference, *hypotheses[::-1]], language=language))
    assert backwards == scores[::-1]
