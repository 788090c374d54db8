from __future__ import annotations

from collections.abc import Callable

import pytest

from rewards.on_text.keyword import Keyword
from rewards.on_text.language_match import language_match
from rewards.on_text.no_stop import no_stop
from speech.records import Group

MakeGroup = Callable[..., Group]


def keyword_values(group: Group, *vocabulary: str) -> list[float | None]:
    return [score.value for score in Keyword(vocabulary=vocabulary)(group)]


def test_keyword_without_vocabulary(make_group: MakeGroup) -> None:
    hypotheses = ["call Anna in New York", "call anna", "call hannah in your", "call anna anna in new york"]
    group = make_group("call Anna in New York", hypotheses, keywords=("Anna", "New York"))
    assert keyword_values(group) == [1.0, 0.75, 0.0, pytest.approx((2 / 3 + 1) / 2)]


def test_keyword_vocabulary_counts_false_alarms(make_group: MakeGroup) -> None:
    group = make_group("call Anna", ["call Anna", "call Bob", "call Anna and Bob"], keywords=("Anna",))
    assert keyword_values(group, "Anna", "Bob") == [1.0, 0.0, 0.75]
    none = make_group("go home", ["go home", "go Bob"])
    assert keyword_values(none) == [1.0, 1.0]
    assert keyword_values(none, "Anna", "Bob") == [1.0, 0.0]
    spoken = make_group("Bob calls Anna", ["Bob calls Anna"], keywords=("Anna",))
    assert keyword_values(spoken, "Anna", "Bob") == [1.0], "a vocabulary word that was spoken is no false alarm"


def test_keyword_in_chinese_and_numbers(make_group: MakeGroup) -> None:
    group = make_group("请打电话给王芳", ["请打电话给王芳", "请打电话给王方"], language="zh", keywords=("王芳",))
    assert keyword_values(group) == [1.0, 0.0]
    numbers = make_group("pay twenty five dollars", ["pay $25", "pay $26"], keywords=("twenty five",))
    assert keyword_values(numbers) == [1.0, 0.0]


def matches(group: Group) -> list[float | None]:
    return [score.value for score in language_match(group)]


def test_language_match_by_script(make_group: MakeGroup) -> None:
    assert matches(make_group("打开灯", ["打开门", "turn on", "", "12"], language="zh")) == [1.0, 0.0, 0.0, 1.0]
    assert matches(make_group("turn on", ["turn off", "打开"], language=None)) == [1.0, 0.0]
    assert matches(make_group("", ["", "x"])) == [1.0, 1.0]
    assert matches(make_group("WiFi", ["wifi"], language="zh")) == [1.0]


def test_language_match_by_claim(make_group: MakeGroup) -> None:
    assert matches(make_group("turn on", ["turn off", "打开"], claimed="English")) == [1.0, 0.0]
    assert matches(make_group("turn on", ["turn off"], claimed="German")) == [0.0]
    assert matches(make_group("打开", ["打开"], language="zh", claimed="zh-CN")) == [1.0]
    assert matches(make_group("mach es an", ["mach es an"], language=None, claimed="German")) == [1.0]
    assert matches(make_group("mach es an", ["mach es an"], language=None, claimed="Chinese")) == [0.0]


def test_no_stop(make_group: MakeGroup) -> None:
    assert [s.value for s in no_stop(make_group("a", ["a", "b"], finish_reason="length"))] == [-1.0, -1.0]
    assert [s.value for s in no_stop(make_group("a", ["a"]))] == [0.0]
