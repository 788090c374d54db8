from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech import text as t

LANGUAGES = st.sampled_from(["en", "zh", "de", "ja", "th", "ar", "xx", None])


@pytest.mark.parametrize(
    ("raw", "language", "expected"),
    [
        ("Hello, World!", "en", "hello world"),
        ("Mr. Smith's twenty-one dollars, colour!", "en", "mister smith is $21 color"),
        ("I can't, uh, go", "English", "i can not go"),
        ("I can't go", "en-US", "i can not go"),
        ("你好，世界！", "zh", "你好世界"),
        ("我有25块钱。", "zh", "我有二十五块钱"),
        ("後來我們去臺灣", "zh", "后来我们去台湾"),
        ("打开 WiFi", "Chinese", "打开wifi"),
        ("Más información, señor", "es", "más información señor"),
        ("नमस्ते, दुनिया", "hi", "नमस्ते दुनिया"),
        ("こんにちは、世界", "ja", "こんにちは世界"),
        ("مَرْحَبًا", "ar", "مرحبا"),
        ("!?…", "en", ""),
        ("The end… for 3.14 $", "en", "the end for $3.14"),
        ("。", "zh", ""),
        ("", None, ""),
    ],
)
def test_normalise(raw: str, language: str | None, expected: str) -> None:
    assert t.normalise(raw, language) == expected


@given(st.text(max_size=40), LANGUAGES)
def test_normalised_text_is_clean_and_deterministic(raw: str, language: str | None) -> None:
    result = t.normalise(raw, language)
    assert result == " ".join(result.split())
    assert t.normalise.__wrapped__(raw, language) == result
    assert all(unit and not any(c.isspace() for c in unit) for unit in t.units(raw, language))
    assert all(t.loose_units(raw, language))


def test_units_are_words_or_characters() -> None:
    assert t.units("Turn ON the light.", "en") == ["turn", "on", "the", "light"]
    assert t.units("打开灯", "zh") == ["打", "开", "灯"]
    assert t.units("打开灯", None) == ["打", "开", "灯"]
    assert t.units("สวัสดี", "th") == list("สวัสดี")


def test_texts_as_seed_tts_eval_compares_them() -> None:
    expected = "don't stop 21 wellknown things 5".split()
    assert t.seed_tts_units("Don't stop: 21 well-known “things” – $5!", "en") == expected
    assert t.seed_tts_units("打开 WiFi，好吗？", "zh") == list("打开wifi好吗")
    assert t.seed_tts_units("…", "en") == []


def test_loose_units_show_each_digit() -> None:
    assert t.units("call one two two now", "en") == ["call", "122", "now"]
    assert t.loose_units("call one two two now", "en") == ["call", "1", "2", "2", "now"]
    assert t.loose_units("$25 for Anna", "en") == ["2", "5", "for", "anna"]


def test_scripts() -> None:
    assert t.dominant_script("hello") == "LATIN"
    assert t.dominant_script("привет") == "CYRILLIC"
    assert t.dominant_script("打开 WiFi") == "HAN"
    assert t.dominant_script("ＡＢＣ") == "LATIN"
    assert t.dominant_script("12, 3!") is None
    assert t.script_shares("") == {}
    assert sum(t.script_shares("打开 WiFi привет").values()) == pytest.approx(1.0)
    assert t.expected_scripts("ja") == {"HAN", "HIRAGANA", "KATAKANA"}
    assert t.expected_scripts("xx") == frozenset()
    assert t.allowed_scripts("こんにちは世界", None) == t.expected_scripts("ja")


@pytest.mark.parametrize(
    ("raw", "language"),
    [
        ("hello", "en"),
        ("你好", "zh"),
        ("こんにちは", "ja"),
        ("안녕", "ko"),
        ("привет", "ru"),
        ("12", "en"),
        ("…", None),
    ],
)
def test_guess_language(raw: str, language: str | None) -> None:
    assert t.guess_language(raw) == language


@pytest.mark.parametrize(
    ("name", "code"), [("English", "en"), ("zh-CN", "zh"), ("cmn", "zh"), ("en_GB", "en"), ("Klingon", "klingon")]
)
def test_language_code(name: str, code: str) -> None:
    assert t.language_code(name) == code


def test_version_names_the_libraries() -> None:
    assert "whisper_normalizer" in t.NORMALISER_VERSION and "wetext" in t.NORMALISER_VERSION


def test_grammars_are_loaded_on_first_use_only() -> None:
    code = "import sys, speech.text as t; t.normalise('hi', 'en'); sys.exit('wetext' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
