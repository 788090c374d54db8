"""Orpheus's turns, and its frames of seven."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech.errors import InputError, UserError
from speech.families import load_family
from speech.families.orpheus import OrpheusFamily
from tests.speech.families.tts_checkpoints import write_orpheus

ASKED = "<|eot_id|><custom_token_4><custom_token_5><custom_token_1>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orpheus(tmp_path_factory.mktemp("orpheus") / "model")


def written(family: OrpheusFamily, *arguments: object) -> str:
    return family.tokenizer.decode(list(family.layout(*arguments).token_ids))  # type: ignore[arg-type]


def test_a_voice_by_name_stands_before_the_text(folder: Path) -> None:
    family = load_family(folder, options={"voice": "tara"})
    assert isinstance(family, OrpheusFamily)
    expected = f"<custom_token_3><|begin_of_text|>tara: turn on the light{ASKED}"
    assert written(family, " turn on the light ", "", []) == expected
    # The recording is for rewards that compare voices: no part of the prompt.
    assert written(family, "turn on the light", "good day", [0, 3]) == expected


def test_a_recording_is_a_turn_of_its_own(folder: Path) -> None:
    family = OrpheusFamily(folder)
    assert written(family, "hello", "good day", [0, 3, 20]) == (
        f"<custom_token_3><|begin_of_text|>good day{ASKED}<custom_token_10><custom_token_13><custom_token_30>"
        f"<custom_token_2><custom_token_6><custom_token_3><|begin_of_text|>hello{ASKED}"
    )
    with pytest.raises(InputError, match="prompt_text: is empty"):
        family.layout("hello", "", [0])
    assert written(family, "hello", "is not said", []) == f"<custom_token_3><|begin_of_text|>hello{ASKED}"


def test_speech_is_whole_frames(folder: Path) -> None:
    family = OrpheusFamily(folder)
    names = family.tokenizer.convert_ids_to_tokens([family.speech_ids[0], family.speech_ids[-1]])
    assert names == ["<custom_token_10>", "<custom_token_30>"]
    assert family.tokenizer.convert_tokens_to_ids("<custom_token_32>") not in family.allowed_token_ids


@pytest.mark.parametrize("voice", ["", " ", "tara: say"])
def test_a_voice_needs_a_name(folder: Path, voice: str) -> None:
    with pytest.raises(UserError, match="is no name of a voice"):
        OrpheusFamily(folder, voice)
