"""What must be true of every text, in every language."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speech import text as t
from speech.edits import character_edits, word_edits

CODES = st.sampled_from(["en", "zh", "yue", "de", "tr", "el", "ja", "th", "ar", "fa", "ur", "hi", "he", "xx"])
ANY = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(), max_size=20),
    st.text("0123456789.,:%$£€°-+/½²  '’`abcmps", max_size=20),
    st.text("零一二两幺三十百千万0123456789:.%年月点个平米½（）[]<>a", max_size=15),
    st.text("كکيیىةأإآاه\u0640\u064b\u0652\u200c\u0660\u06f1 ٪٫", max_size=20),
    st.text("İIıiΣσςß'\u0307\u0301éÅ\u212b\u200b\ufeff\u00ad\u2044\ud800 ", max_size=20),
)
WORDS = st.lists(
    st.sampled_from(
        "zero oh one two five ten eleven twenty thirty ninety first second fifth hundred thousand million billionth "
        "and point double minus plus dollar dollars cents pounds euro percent per cent a half red it's don't call me "
        "5 05 0 3.0 0.5 $1 $5 $0.50 5% 20 1,000 1st 80s 3:30 555".split()
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=400, deadline=None)
@given(ANY, CODES.filter(lambda code: code != "en"))
@example("幺2s", "zh")
def test_a_normalised_text_is_its_own_normal_form(raw: str, language: str) -> None:
    """But in English, where Whisper's rules write `0 1` as `0 one` and read that as 01."""
    once = t.normalise(raw, language)
    assert t.normalise(once, language) == once


@settings(max_examples=300, deadline=None)
@given(ANY, CODES)
def test_a_text_has_no_errors_against_itself(raw: str, language: str) -> None:
    assert word_edits(raw, raw, language).errors == 0
    assert character_edits(raw, raw, language).errors == 0


@settings(max_examples=300, deadline=None)
@given(ANY, ANY, CODES)
def test_every_pair_of_strings_can_be_scored(reference: str, hypothesis: str, language: str) -> None:
    assert word_edits(reference, hypothesis, language).errors >= 0
    assert word_edits(reference, hypothesis, None).errors >= 0
    assert isinstance(t.whisper_units(reference), list)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@settings(max_examples=200, deadline=None)
@given(raw=ANY, language=CODES)
def test_canonically_equivalent_texts_are_equal(form: str, raw: str, language: str) -> None:
    assert t.normalise(unicodedata.normalize(form, raw), language) == t.normalise(raw, language)  # type: ignore[arg-type]


def test_ones_side_by_side_are_the_ones_that_were_said() -> None:
    assert word_edits("1 1", "one one", "en").errors == word_edits("one one", "1 1", "en").errors == 0
    assert word_edits("1 1", "1", "en").errors > 0 and word_edits("1 1", "one one one", "en").errors > 0


def test_a_hundred_between_digits_is_not_free() -> None:
    """Digits one after another are compared whatever they are grouped in; those of a number that was said are not."""
    assert word_edits("zero 5 hundred twenty", "zero 5 twenty", "en").errors > 0
    assert word_edits("0 5 20", "0 5 hundred 20", "en").errors > 0
    assert word_edits("555 hundred twenty", "555 twenty", "en").errors > 0
    assert word_edits("0 five million", "five million", "en").errors > 0, "nor a zero before it"
    assert word_edits("five thousand five hundred", "five five hundred", "en").errors > 0
    assert word_edits("five thousand five hundred", "5 500", "en").errors == 0, "thousands are written apart"
    assert word_edits("we have 5 500 of them", "we have five thousand five hundred of them", "en").errors == 0
    assert word_edits("five hundred twenty", "520", "en").errors == 0
    assert word_edits("0 520", "zero five twenty", "en").errors == 0
    assert word_edits("call 555 1212", "call 5551212", "en").errors == 0


@settings(max_examples=1000, deadline=None)
@given(WORDS, st.data())
def test_no_dropped_word_is_free(words: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(words) - 1))
    dropped = [*words[:place], *words[place + 1 :]]
    assert word_edits(" ".join(words), " ".join(dropped), "en").errors > 0, (words[place], dropped)
    assert word_edits(" ".join(dropped), " ".join(words), "en").errors > 0, (words[place], dropped)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from("一二两幺三十百千万点零年月天个平米你好啊"), min_size=1, max_size=9)
    | st.lists(st.sampled_from("0123456789你好年月平米"), min_size=1, max_size=9),
    st.data(),
)
def test_no_dropped_character_is_free_in_chinese(characters: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(characters) - 1))
    dropped = characters[:place] + characters[place + 1 :]
    assert word_edits("".join(characters), "".join(dropped), "zh").errors > 0, (characters, dropped)
