from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.errors import UserError
from speech.preparation.selection import (
    Difficulty,
    measure_difficulty,
    repetition,
    select_by_duration,
    select_hard,
    select_keyword_rich,
    select_long_and_repetitive,
    select_random,
    split,
)
from speech.preparation.statistics import summarise
from speech.records import Utterance


def utterance(name: str, text: str = "a b c d", **fields: object) -> Utterance:
    return Utterance(id=name, audio=f"/{name}.wav", text=text, **fields)


def share_of_other_words(reference: str, hypothesis: str, language: str | None) -> float:
    return sum(word not in hypothesis.split() for word in reference.split()) / len(reference.split())


def test_difficulty_by_several_systems():
    systems = [{"1": "a b c d", "2": "a b x y"}, {"1": "a b c d", "2": "a b c z"}]
    assert measure_difficulty([utterance("1"), utterance("2")], systems, share_of_other_words) == [
        Difficulty(error_rate=0.0, disagreement=0.0),
        Difficulty(error_rate=0.375, disagreement=0.5),
    ]


def test_missing_hypotheses_are_named():
    with pytest.raises(UserError, match="system 2 has no hypothesis for 1 utterances: 2"):
        measure_difficulty([utterance("1"), utterance("2")], [{"1": "", "2": ""}, {"1": ""}], share_of_other_words)


def test_hard_utterances():
    rows = [("perfect", 0.0, 0.0), ("hard", 0.3, 0.1), ("hopeless", 1.5, 0.2), ("disputed", 0.01, 0.6)]
    utterances = [utterance(name) for name, _, _ in rows]
    difficulties = [Difficulty(rate, between) for _, rate, between in rows]

    def names(**options: float) -> list[str]:
        return [kept.id for kept in select_hard(utterances, difficulties, 0.05, 1.0, **options)]

    assert names() == ["hard"]
    assert names(min_disagreement=0.5) == ["hard", "disputed"]


def test_duration_and_keywords():
    data = [
        utterance("1", duration=5.0),
        utterance("2", duration=20.0, keywords=("a", "b")),
        utterance("3", duration=25.0),
    ]
    assert [u.id for u in select_by_duration(data, 20.0)] == ["2", "3"]
    assert [u.id for u in select_by_duration(data, max_seconds=20.0)] == ["1"]
    assert [u.id for u in select_keyword_rich(data, 2)] == ["2"]
    with pytest.raises(ValueError, match="duration is unknown"):
        select_by_duration([utterance("1")])


names = st.lists(st.text(min_size=1, max_size=4), unique=True, min_size=1, max_size=30)


@given(names, st.integers(0, 40), st.integers(0, 3))
def test_random_choice_ignores_the_order_of_the_file(ids, count, seed):
    data = [utterance(name) for name in ids]
    chosen = select_random(data, count, seed)
    assert len(chosen) == min(count, len(data))
    assert chosen == [item for item in data if item in chosen]
    assert set(select_random(data[::-1], count, seed)) == set(chosen)


@given(names.filter(lambda ids: len(ids) >= 3), st.integers(0, 3))
def test_split_is_a_partition_with_the_shares(ids, seed):
    data = [utterance(name) for name in ids]
    parts = split(data, {"train": 0.6, "valid": 0.2, "test": 0.2}, seed)
    assert sorted(item.id for part in parts.values() for item in part) == sorted(ids)
    assert split(data[::-1], {"train": 0.6, "valid": 0.2, "test": 0.2}, seed)["test"] == parts["test"][::-1]
    assert abs(len(parts["train"]) - 0.6 * len(ids)) <= 1.5


def test_split_by_speaker():
    data = [utterance(str(i), speaker=f"s{i % 10}") for i in range(100)]
    parts = split(data, {"train": 0.8, "test": 0.2}, seed=1, by_speaker=True)
    voices = {name: {item.speaker for item in part} for name, part in parts.items()}
    assert not voices["train"] & voices["test"]
    assert len(parts["test"]) == 20
    with pytest.raises(UserError, match="has none"):
        split([utterance("1")], {"train": 1.0}, seed=0, by_speaker=True)


def test_split_refuses():
    with pytest.raises(ValueError, match="sum to 1"):
        split([utterance("1")], {"train": 0.5}, seed=0)
    with pytest.raises(UserError, match="too few utterances to split: test stays empty"):
        split([utterance("1")], {"train": 0.5, "test": 0.5}, seed=0)


def test_statistics():
    data = [
        utterance("1", "one two", duration=0.5, language="en", speaker="a", keywords=("one",)),
        utterance("2", "你好", duration=2.0, language="zh", speaker="a"),
        utterance("3", "你 好 吗", duration=40.0),
    ]
    total = summarise(data)
    assert (total.utterances, total.seconds, total.words, total.speakers, total.with_keywords) == (3, 42.5, 7, 1, 1)
    assert total.languages == {"en": 1, "zh": 1, None: 1}
    assert total.durations == [1, 0, 1, 0, 0, 0, 1]


def test_repetition_counts_word_pairs_that_come_again():
    assert repetition("turn the light on", "en") == 0.0
    assert repetition("no no no no no", "en") == pytest.approx(3 / 4)
    assert repetition("好好好好", "zh") == pytest.approx(2 / 3)
    assert repetition("hello", "en") == repetition("", None) == 0.0


def test_long_and_repetitive_is_both():
    looping, plain = "go on go on go on", "go on and see what comes"
    chosen = select_long_and_repetitive(
        [
            utterance("long-looping", looping, duration=30.0),
            utterance("short-looping", looping, duration=2.0),
            utterance("long-plain", plain, duration=30.0),
        ],
        min_seconds=20.0,
        min_repetition=0.3,
    )
    assert [u.id for u in chosen] == ["long-looping"]
