from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.on_text.hallucination import Hallucination
from speech.records import Group

MakeGroup = Callable[..., Group]


def fired(group: Group, **options: Any) -> set[str]:
    (score,) = Hallucination(**options)(group)
    rules = {rule for rule, hit in score.details.items() if hit}
    assert score.value == (-1.0 if rules else 0.0)
    return rules


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        ("go home", "go go go go home"),
        ("turn on the light", "turn on turn on turn on turn on the light"),
        ("go home", "go hahahahahaha"),
        ("go home", "go uh uh uh uh home"),
        ("go home", "go [background noise] [background noise] [background noise] [background noise] home"),
        ("call seven", "call seven seven seven seven"),
    ],
)
def test_loops(make_group: MakeGroup, reference: str, hypothesis: str) -> None:
    assert "loop" in fired(make_group(reference, [hypothesis]))
    assert "loop" not in fired(make_group(reference, [hypothesis]), loop=False)


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        ("go home", "go go go home"),
        ("no no no no no", "no no no no no no"),
        ("dial 1111", "dial one one one one"),
        ("dial one one one one", "dial 1111"),
        ("five", "five million"),
        ("one hundred million", "ten billion"),
        ("the end", "the end......"),
        ("ha ha ha ha ha ha", "hahahahahaha"),
    ],
)
def test_not_loops(make_group: MakeGroup, reference: str, hypothesis: str) -> None:
    assert "loop" not in fired(make_group(reference, [hypothesis]))


def test_loops_in_chinese(make_group: MakeGroup) -> None:
    assert "loop" in fired(make_group("打开灯", ["打开打开打开打开灯"], language="zh"))
    assert "loop" not in fired(make_group("哈哈哈哈", ["哈哈哈哈哈"], language="zh"))
    assert "loop" not in fired(make_group("一亿", ["100000000"], language="zh"))


def test_truncated_samples_need_fewer_repeats(make_group: MakeGroup) -> None:
    assert "loop" not in fired(make_group("go home", ["go go go"]))
    assert "loop" in fired(make_group("go home", ["go go go"], finish_reason="length"))
    assert "loop" not in fired(make_group("go home", ["go home"], finish_reason="length"))


def test_endless_loops_are_found_in_little_time(make_group: MakeGroup) -> None:
    group = make_group("go " * 1000, ["go " * 1002])
    begin = time.process_time()
    assert "loop" not in fired(group)
    assert time.process_time() - begin < 2.0, "counting in the reference once per position takes several times that"


def test_insertion_bursts(make_group: MakeGroup) -> None:
    long = "the big red car is in front of the old house today"
    assert "insertion" in fired(make_group(long, [long + " and we will be there soon"]))
    assert "insertion" in fired(make_group("go home", ["please go right back home now"]))
    assert fired(make_group("go", ["go now"])) == set(), "one word too many is no burst"
    assert fired(make_group("go home now", ["a b c d"])) == set(), "substitutions are R1's"
    assert fired(make_group("go home", ["please go right back home now"]), insertion=False) == set()


def test_silence(make_group: MakeGroup) -> None:
    assert fired(make_group("", ["thank you"])) == {"silence"}
    assert fired(make_group("go home", ["go home"], peak=0.0)) == {"silence"}
    assert fired(make_group("", [""])) == set()
    assert fired(make_group("", ["..."])) == set()
    assert fired(make_group("", ["thank you"]), silence=False) == set()
    assert fired(make_group("go", ["go"], peak=0.01), silence_peak=0.1) == {"silence"}


def test_scripts(make_group: MakeGroup) -> None:
    off = {"insertion": False}
    assert fired(make_group("打开客厅的灯", ["turn on the light"], language="zh"), **off) == {"script"}
    assert fired(make_group("打开 WiFi", ["turn on the WiFi"], language="zh"), **off) == {"script"}
    assert fired(make_group("turn on the light", ["打开客厅的灯"]), **off) == {"script"}
    assert fired(make_group("turn on the light", ["打开客厅的灯"], language=None), **off) == {"script"}
    assert fired(make_group("打开 WiFi", ["打开 WiFi"], language="zh")) == set()
    assert fired(make_group("WiFi", ["WiFi"], language="zh")) == set()
    assert fired(make_group("こんにちは世界", ["こんにちわ世界"], language="ja")) == set()
    assert fired(make_group("turn it on", ["mach es an"]), **off) == set(), "same script: not seen, as documented"
    assert fired(make_group("打开灯", ["turn"], language="zh"), script=False) == set()


@given(
    st.lists(st.sampled_from(["no", "go", "seven", "million", "7", "uh", "(x)", "打", "hahahaha", "."]), max_size=16),
    st.sampled_from(["en", "zh", "de", None]),
    st.sampled_from(["stop", "length"]),
)
def test_the_reference_itself_never_fires(
    make_group: MakeGroup, words: list[str], language: str | None, finish_reason: str
) -> None:
    text = " ".join(words)
    rules = fired(make_group(text, [text], language=language, finish_reason=finish_reason))
    assert rules <= {"silence"}, "only a reference of fillers alone counts as silence"


@pytest.mark.parametrize("options", [{"loop_repeats": 1}, {"insertion_run": 0}, {"script_share": 1.0}])
def test_bad_thresholds(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Hallucination(**options)
