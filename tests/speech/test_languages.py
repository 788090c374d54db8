"""Codes of languages, against the register as pycountry has it."""

from __future__ import annotations

import pytest

from speech.text import is_language_code, language_code
from speech.text.iso639 import CODES, TO_TWO_LETTERS


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("eng", "en"), ("ger", "de"), ("deu", "de"), ("zho", "zh"), ("chi", "zh"), ("cmn", "zh"), ("zh-CN", "zh"),
        ("zh_Hans_CN", "zh"), ("jp", "ja"), ("jpn", "ja"), ("ja-JP", "ja"), ("yue", "yue"), ("pes", "fa"),
        ("nob", "no"), ("iw", "he"), ("fil", "tl"), ("Mandarin", "zh"),
    ],
)  # fmt: skip
def test_every_name_of_a_language_has_one_code(written: str, code: str) -> None:
    assert language_code(written) == code
    assert is_language_code(code)


@pytest.mark.parametrize("written", ["jp", "xx", "EN", "en-US", "english", "und", "mul", "", "e", "enn2"])
def test_what_is_no_code(written: str) -> None:
    assert not is_language_code(written)


def test_the_table_is_the_register() -> None:
    pycountry = pytest.importorskip("pycountry")
    languages = [language for language in pycountry.languages if language.type != "S"]
    known = {code for language in languages for code in (language.alpha_3, getattr(language, "alpha_2", None)) if code}
    known |= {language.bibliographic for language in languages if hasattr(language, "bibliographic")}
    assert known == CODES
    pairs = {language.alpha_3: language.alpha_2 for language in languages if hasattr(language, "alpha_2")}
    assert pairs.items() <= TO_TWO_LETTERS.items()
