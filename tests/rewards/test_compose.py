from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.compose import RewardComposition
from rewards.config import RewardConfig, RewardItem
from speech.errors import UserError
from speech.records import Group

MakeGroup = Callable[..., Group]
TEXTS = st.lists(st.text(alphabet="ab 打", max_size=10), min_size=1, max_size=8)
USER = "tests.rewards.misbehaving_rewards:"


def compose(*items: tuple[str, float], normalise: bool = False) -> RewardComposition:
    return RewardComposition(RewardConfig([RewardItem(name, weight) for name, weight in items], normalise))


def totals(composition: RewardComposition, group: Group) -> list[float | None]:
    return [reward.total for reward in composition.score(group).rewards]


def test_parts_details_and_total(make_group: MakeGroup) -> None:
    group = make_group("go home now please", ["go home now", "go go go go go"])
    first, second = compose(("accuracy", 1.0), ("hallucination", 0.5)).score(group).rewards
    assert first.total == pytest.approx(0.75) and first.parts == {"accuracy": 0.75, "hallucination": 0.0}
    assert first.details["accuracy/deletions"] == 1.0
    assert second.parts["hallucination"] == -1.0 and second.details["hallucination/loop"] == 1.0
    assert second.total == pytest.approx(second.parts["accuracy"] - 0.5)


@given(TEXTS, st.floats(-5, 5), st.floats(-5, 5))
def test_the_sum_is_linear_in_the_weights(make_group: MakeGroup, texts: list[str], a: float, b: float) -> None:
    group = make_group("a b ab", texts)
    both = totals(compose(("accuracy", a), (USER + "length", b)), group)
    accuracy, length = totals(compose(("accuracy", 1)), group), totals(compose((USER + "length", 1)), group)
    assert both == pytest.approx([a * x + b * y for x, y in zip(accuracy, length, strict=True)])  # type: ignore[operator]


@given(TEXTS)
def test_normalised_parts_have_zero_mean_and_unit_spread(make_group: MakeGroup, texts: list[str]) -> None:
    values = [t or 0.0 for t in totals(compose((USER + "length", 1.0), normalise=True), make_group("a", texts))]
    assert sum(values) == pytest.approx(0.0, abs=1e-9)
    spread = sum(v * v for v in values) / len(values)
    assert spread == pytest.approx(0.0 if len({len(t) for t in texts}) == 1 else 1.0)


@given(TEXTS)
def test_samples_do_not_depend_on_their_order(make_group: MakeGroup, texts: list[str]) -> None:
    composition = compose(("accuracy", 1.0), ("hallucination", 0.5), ("keyword", 1.0), normalise=True)
    forth, back = totals(composition, make_group("a b", texts)), totals(composition, make_group("a b", texts[::-1]))
    assert forth == pytest.approx(back[::-1])


def test_a_reward_that_raises_makes_the_group_invalid(make_group: MakeGroup, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        rewards = compose(("accuracy", 1.0), (USER + "raises", 1.0)).score(make_group("a", ["a", "b"])).rewards
    assert [r.total for r in rewards] == [None, None]
    assert rewards[0].invalid == "raises: RuntimeError: judge is down"
    assert rewards[0].parts == {"accuracy": 1.0}, "what is known is kept for the logs"
    assert "failed on 0/u" in caplog.text


@pytest.mark.parametrize("name", ["too_few", "bare_floats"])
def test_a_bad_result_makes_the_group_invalid(make_group: MakeGroup, name: str) -> None:
    rewards = compose((USER + name, 1.0)).score(make_group("a", ["a", "b"])).rewards
    assert not any(r.valid for r in rewards) and (rewards[0].invalid or "").startswith(name)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("not_a_number", "nan", "not a finite number: nan"), ("partly", "bad", "judge error: no audio")],
)
def test_one_bad_sample_leaves_the_others(make_group: MakeGroup, name: str, text: str, reason: str) -> None:
    group = make_group("a", [text, "a", "b c"])
    rewards = compose((USER + name, 1.0), ("accuracy", 1.0), normalise=True).score(group).rewards
    assert rewards[0].invalid == f"{name}: {reason}" and rewards[0].total is None
    assert [r.total for r in rewards[1:]] == pytest.approx([1.0, -1.0]), "invalid samples are outside the mean"


def test_an_empty_transcript_is_a_real_score(make_group: MakeGroup) -> None:
    (reward,) = compose(("accuracy", 1.0), ("hallucination", 1.0)).score(make_group("go home", [""])).rewards
    assert reward.valid and reward.total == 0.0


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "items is empty"),
        ([RewardItem("accuracy"), RewardItem("accuracy")], "names 'accuracy' twice"),
        ([RewardItem("accuracy", float("nan"))], "not a finite number"),
        ([RewardItem("acuracy")], "did you mean 'accuracy'"),
    ],
)
def test_configuration_mistakes(items: list[RewardItem], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardComposition(RewardConfig(items))
