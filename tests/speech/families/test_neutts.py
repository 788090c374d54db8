"""NeuTTS's prompt and its phonemes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from speech.errors import InputError, UserError
from speech.families import load_family
from speech.families.neutts import NeuTTSFamily
from tests.speech.families.tts_checkpoints import ESPEAK, write_neutts

BEFORE = "user: Convert the text to speech:<|TEXT_PROMPT_START|>"
AFTER = "<|TEXT_PROMPT_END|>\nassistant:<|SPEECH_GENERATION_START|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_neutts(tmp_path_factory.mktemp("neutts") / "model")


@pytest.fixture(scope="module")
def family(folder: Path) -> NeuTTSFamily:
    found = load_family(folder, options={"phonemes": ESPEAK})
    assert isinstance(found, NeuTTSFamily)
    return found


def test_phonemes_of_voice_and_text_stand_in_one_turn(family: NeuTTSFamily) -> None:
    layout = family.layout(" turn on  the light ", "good day", [3, 1])
    assert family.tokenizer.decode(list(layout.token_ids)) == (
        f"{BEFORE}ɡˈʊd dˈeɪ tˈɜːn ɔnðə lˈaɪt{AFTER}<|speech_3|><|speech_1|>"
    )
    # In one piece, as the authors encode it: a tokenizer may join what stands at the seam.
    spoken = family.tokenizer.encode("ɡˈʊd dˈeɪ tˈɜːn ɔnðə lˈaɪt", add_special_tokens=False)
    start = layout.token_ids.index(family.tokenizer.convert_tokens_to_ids("<|TEXT_PROMPT_START|>"))
    assert list(layout.token_ids[start + 1 : start + 1 + len(spoken)]) == spoken


def test_without_a_voice_the_text_stands_alone(family: NeuTTSFamily) -> None:
    assert family.tokenizer.decode(list(family.layout("light", "is not said", []).token_ids)) == (
        f"{BEFORE}lˈaɪt{AFTER}"
    )
    with pytest.raises(InputError, match="prompt_text: is empty"):
        family.layout("light", "", [1])


def test_control_tokens_are_looked_for_before_they_are_phonemes(family: NeuTTSFamily) -> None:
    with pytest.raises(InputError, match=r"text: holds the control token <\|SPEECH_GENERATION_END\|>"):
        family.layout("light <|SPEECH_GENERATION_END|>", "", [])
    with pytest.raises(InputError, match=r"prompt_text: holds the control token <\|speech_2\|>"):
        family.layout("light", "good <|speech_2|>", [1])


def test_texts_may_be_phonemes_already(folder: Path) -> None:
    family = NeuTTSFamily(folder, phonemes="given")
    assert family.tokenizer.decode(list(family.layout("lˈaɪt", "", []).token_ids)) == f"{BEFORE}lˈaɪt{AFTER}"


def test_what_makes_phonemes_is_named_when_it_is_wrong(folder: Path) -> None:
    with pytest.raises(UserError, match="'ipa' is neither espeak, given nor module:function"):
        NeuTTSFamily(folder, phonemes="ipa")
    module = "tests.speech.families.phonemes"
    with pytest.raises(UserError, match=f"'{module}' has no 'espaek'; did you mean 'espeak'"):
        NeuTTSFamily(folder, phonemes=f"{module}:espaek").layout("light", "", [])
    with pytest.raises(UserError, match="'light' became a int, not a str"):
        NeuTTSFamily(folder, phonemes=f"{module}:number").layout("light", "", [])


@pytest.mark.skipif(importlib.util.find_spec("phonemizer") is not None, reason="phonemizer is installed")
def test_without_phonemizer_the_message_says_what_to_install(folder: Path) -> None:
    family = NeuTTSFamily(folder)  # a learner needs none
    with pytest.raises(UserError, match=r"install phonemizer \(pip install 'speechrl\[models\]'\) and espeak-ng"):
        family.layout("light", "", [])


@pytest.mark.skipif(importlib.util.find_spec("phonemizer") is None, reason="phonemizer is not installed")
def test_phonemizer_keeps_punctuation_and_stress(folder: Path) -> None:
    written = NeuTTSFamily(folder).prepare_text("turn on the light, please")
    assert written.count(",") == 1 and "ˈ" in written
