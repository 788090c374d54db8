"""Credit by word: from an alignment of words to values of tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.actor import RewardActor
from rewards.compose import RewardComposition
from rewards.config import RewardConfig, RewardItem
from rewards.credit import token_errors, token_values
from rewards.on_text.accuracy import Accuracy
from rewards.registry import PartScore
from speech.edits import character_edits, word_edits
from speech.families import LanguageModelFamily, load_family
from speech.families.spelling import token_spans
from speech.records import Group, Trajectory
from tests.demo_checkpoint import write_demo_checkpoint
from tests.rewards.conftest import build_group

STOP = 1
DEMO = Path(__file__).parents[2] / "assets/asr_demo"


def written(pieces: list[str], stops: bool = True) -> Trajectory:
    """A sample whose tokens wrote these pieces of its text."""
    spans, place = [], 0
    for piece in pieces:
        spans.append((place, place + len(piece)))
        place += len(piece)
    spans += [(place, place)] * stops
    count = len(spans)
    text = "".join(pieces)
    (sample,) = build_group("", [text]).trajectories
    return dataclasses.replace(sample, token_ids=(7,) * count, logprobs=(-1.0,) * count, spans=tuple(spans))


@pytest.mark.parametrize(
    ("reference", "pieces", "language", "errors"),
    [
        ("go home now", ["go", " home", " now"], "en", [0, 0, 0, 0]),
        ("go home now", ["go", " come", " now"], "en", [0, 1, 0, 0]),  # substitution
        ("go home now", ["go", " ho", "p", "e", " now"], "en", [0, 1 / 3, 1 / 3, 1 / 3, 0, 0]),  # in equal parts
        ("go now", ["go", " right", " now"], "en", [0, 1, 0, 0]),  # insertion
        ("go right now", ["go", " now"], "en", [0, 1, 0]),  # deletion: of the next word
        ("go home right now", ["go", " now"], "en", [0, 2, 0]),
        ("go home now", ["go"], "en", [0, 2]),  # at the end: of the stop token
        ("go home", [], "en", [2]),  # nothing but a stop token
        ("i will not go", ["I", " won't", " go"], "en", [0, 0, 0, 0]),  # two units of one word
        ("i will go", ["I", " won't", " go"], "en", [0, 1, 0, 0]),
        ("twenty one dogs", ["twenty", " one", " cats"], "en", [0, 0, 1, 0]),  # one unit of two words
        ("twenty two dogs", ["twenty", " one", " dogs"], "en", [0.5, 0.5, 0, 0]),
        ("go home", ["uh", " go", " come"], "en", [None, 0, 1, 0]),  # a filler is no unit
        ("go home", ["Go", ",", " (", "noise", ")", " come", "."], "en", [0, 0, None, None, None, 0.5, 0.5, 0]),
        ("go home", ["go", " ", " ", " "], "en", [0, None, None, None, 1]),  # blanks write nothing
        ("打开灯", ["打开", "门"], "zh", [0, 1, 0]),
        ("打开灯", ["打", "灯"], "zh", [0, 1, 0]),
        ("打开灯", ["打水", "灯"], "zh", [1, 0, 0]),
        ("打开灯吧", ["打开"], "zh", [0, 2]),
        ("二十五个", ["2", "5", "个"], "zh", [0, 0, 0, 0]),
        ("二十六个", ["2", "5", "个"], "zh", [0.5, 0.5, 0, 0]),  # 二十五: one piece of two tokens
        ("geh heim", ["geh", " beim"], "de", [0, 1, 0]),
    ],
)
def test_errors_fall_on_the_tokens_that_made_them(
    reference: str, pieces: list[str], language: str, errors: list[float | None]
) -> None:
    sample = written(pieces)
    found = token_errors(reference, sample, language, by_character=False)
    assert [one is None for one in found] == [one is None for one in errors]
    assert [one or 0 for one in found] == pytest.approx([one or 0 for one in errors])
    assert sum(one or 0 for one in errors) == pytest.approx(word_edits(reference, sample.text, language).errors)


def test_characters_of_words() -> None:
    sample = written(["bed", " hat"])
    assert token_errors("red heat", sample, "en", by_character=True) == [1.0, 1.0, 0.0]
    assert token_errors("redhat", sample, "en", by_character=True) == pytest.approx([1.0, 1.0, 0.0])


def test_a_sample_that_ran_out_of_tokens_has_what_is_missing_in_its_last() -> None:
    assert token_errors("go home now", written(["go", " home"], stops=False), "en", by_character=False) == [0.0, 1.0]


def test_what_cannot_be_mapped_is_not_guessed() -> None:
    sample = written(["go", " come"])
    assert token_errors("go home", dataclasses.replace(sample, spans=()), "en", by_character=False) == []
    # Digits in other units than the text alone would have are found all the same; read in another way they are not.
    assert token_errors("call 555 1212 now", written(["call", " 5551212"]), "en", by_character=False) == [0, 0, 1]
    assert token_errors("二五个", written(["25", "个"]), "zh", by_character=False) == []


WORDS = st.lists(st.sampled_from(["go", "home", "won't", "twenty", "one", "uh", "5", "Dr.", "打", "[x]"]), max_size=6)


@given(WORDS, WORDS, st.sampled_from(["en", "zh", "de"]), st.booleans())
def test_errors_add_up_whatever_the_texts(
    reference: list[str], hypothesis: list[str], language: str, by_character: bool
) -> None:
    sample = written([f" {word}" if place else word for place, word in enumerate(hypothesis)])
    errors = token_errors(" ".join(reference), sample, language, by_character)
    count = character_edits if by_character else word_edits
    if errors:
        known = [own for own in errors if own is not None]
        assert sum(known) == pytest.approx(count(" ".join(reference), sample.text, language).errors)
        assert len(errors) == len(sample.token_ids) and min(known, default=0) >= 0


OWN = st.lists(st.none() | st.floats(0, 4).map(lambda x: round(x, 2)), min_size=1, max_size=9)


@given(st.floats(-3, 1), st.floats(0, 1), OWN)
def test_values_of_tokens_have_the_value_as_their_mean(value: float, share: float, errors: list[float | None]) -> None:
    tokens = token_values(value, 1.0, share, errors)
    assert sum(tokens) / len(tokens) == pytest.approx(value, abs=1e-9)
    assert all(token == value for token, own in zip(tokens, errors, strict=True) if own is None)
    if share == 1 and any(errors):
        assert all(token == pytest.approx(1.0) for token, own in zip(tokens, errors, strict=True) if own == 0)


def test_writing_nothing_is_never_better_than_the_sentence() -> None:
    """A policy that pads its transcript with blanks until its tokens run out is taught to stop, not to go on."""
    sample = dataclasses.replace(written(["go", *[" "] * 20], stops=False), finish_reason="length")
    errors = token_errors("go home now", sample, "en", by_character=False)
    right, *blanks, last = token_values(1 / 3, 1.0, 1.0, errors)
    assert right == pytest.approx(1.0) and set(blanks) == {1 / 3} and last == pytest.approx(-1 / 3)


def spoken(family: LanguageModelFamily, reference: str, texts: list[str]) -> Group:
    """Samples of a real tokenizer, each with its stop token."""
    group = build_group(reference, texts)
    ids = [(*family.text_ids(text), *family.stop_token_ids) for text in texts]
    samples = tuple(
        dataclasses.replace(sample, token_ids=tokens, logprobs=(-1.0,) * len(tokens))
        for sample, tokens in zip(group.trajectories, ids, strict=True)
    )
    return dataclasses.replace(group, trajectories=samples)


@pytest.mark.parametrize("text", ["", "go home", "zwölf Bücher", "打开灯", "a  b"])
def test_spans_of_bytes_and_of_subwords(tmp_path: Path, text: str) -> None:
    for family in (load_family(write_demo_checkpoint(tmp_path / "bytes")), load_family(DEMO)):
        ids = [*family.text_ids(text), STOP]
        said = family.parse_output(ids)[0]
        spans = token_spans(family, ids, said)
        assert len(spans) == len(ids) and spans[-1] == (len(said), len(said))
        for place in range(len(said)):
            assert any(start <= place < end for start, end in spans), "every character has a token"
        assert all(end > start for start, end in spans[:-1]), "also a byte that only begins a character"
        assert token_spans(family, ids, said + "!") == ()


def test_control_tokens_before_the_transcript_write_nothing(tmp_path: Path) -> None:
    family = load_family(write_demo_checkpoint(tmp_path / "model"))
    ids = [4, *family.text_ids("go"), 5, STOP]
    assert token_spans(family, ids, "go") == ((0, 0), (0, 1), (1, 2), (2, 2), (2, 2))


def test_the_actor_gives_credit_to_tokens_and_keeps_the_totals(tmp_path: Path) -> None:
    model = write_demo_checkpoint(tmp_path / "model")
    group = spoken(load_family(model), "go home now", ["go come now", "go home now", "go now"])
    items = [RewardItem("accuracy", 2.0, {"word_credit": 1.0, "shape": "exp"}), RewardItem("no_stop", 0.5)]
    config = RewardConfig(items)
    (credited,) = RewardActor(config, None, lambda: load_family(model)).score([group]).rewards
    plain = RewardConfig([RewardItem("accuracy", 2.0, {"shape": "exp"}), RewardItem("no_stop", 0.5)])
    (totals,) = RewardActor(plain).score([group]).rewards
    assert [reward.total for reward in credited] == [reward.total for reward in totals]
    assert all(reward.token_credit == () for reward in totals)
    for reward in credited:
        assert sum(reward.token_credit) == pytest.approx(0.0, abs=1e-9) and reward.details["accuracy/word_credit"] == 1
    wrong, right, missing = (reward.token_credit for reward in credited)
    assert set(right) == {0.0}
    # One byte a token; the space before a word is none of the word's.
    assert [place for place, credit in enumerate(wrong) if credit < -1e-9] == [3, 4, 5, 6]
    lost = 2.0 * (1.0 - credited[0].parts["accuracy"])
    assert max(wrong) == pytest.approx(lost), "a token without error has the best value"
    assert [place for place, credit in enumerate(missing) if credit < 0] == [3, 4, 5], "the word after the missing one"
    (without,) = RewardActor(config).score([group]).rewards
    assert all(r.token_credit == () and r.details["accuracy/word_credit"] == 0 for r in without), "counted"


def test_normalised_parts_scale_their_credit() -> None:
    group = build_group("a b", ["a b", "a c", "d c"])
    samples = tuple(written([t.text[0], t.text[1:]]) for t in group.trajectories)
    group = dataclasses.replace(group, trajectories=samples)
    item = RewardItem("accuracy", 3.0, {"word_credit": 1.0})
    (_, plain, _) = RewardComposition(RewardConfig([item])).score(group).rewards
    (_, scaled, _) = RewardComposition(RewardConfig([item], normalise_parts=True)).score(group).rewards
    spread = ((0.5**2 + 0 + 0.5**2) / 3) ** 0.5
    assert scaled.token_credit == pytest.approx([credit / spread for credit in plain.token_credit])
    assert plain.token_credit == pytest.approx([3 * (v - 0.5) for v in (1.0, 1 - 0.5 * 3, 1.0)])


def test_values_for_other_tokens_make_the_group_invalid() -> None:
    def wrong(group: Group) -> list[PartScore]:
        return [PartScore(value=1.0, tokens=(1.0, 2.0))] * len(group.trajectories)

    composition = RewardComposition(RewardConfig([RewardItem("accuracy")]))
    composition._parts["accuracy"] = (1.0, wrong)
    (reward,) = composition.score(build_group("a", ["a"])).rewards
    assert reward.invalid == "accuracy: ValueError: 2 values for 1 tokens"


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="word_credit"):
        Accuracy(word_credit=share)
