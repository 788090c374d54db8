"""Llasa's chat layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speech.errors import InputError, UserError
from speech.families.llasa import LlasaFamily
from tests.speech.families.tts_checkpoints import write_llasa


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llasa(tmp_path_factory.mktemp("llasa") / "model")


def test_the_prompt_is_that_of_the_chat_template(folder: Path) -> None:
    """As the authors build it: one user turn with the text, the assistant's turn begun with speech."""
    family = LlasaFamily(folder)
    chat = [
        {
            "role": "user",
            "content": "Convert the text to speech:<|TEXT_UNDERSTANDING_START|>good day turn on the light"
            "<|TEXT_UNDERSTANDING_END|>",
        },
        {"role": "assistant", "content": "<|SPEECH_GENERATION_START|><|s_3|><|s_1|>"},
    ]
    expected = family.tokenizer.apply_chat_template(
        chat, tokenize=True, continue_final_message=True, return_dict=False, date_string="26 Jul 2024"
    )
    layout = family.layout("turn on the light", "good day", [3, 1])
    assert list(layout.token_ids) == expected
    written = family.tokenizer.decode(expected)
    assert written.startswith("<|begin_of_text|><|start_header_id|>system")
    assert "Today Date: 26 Jul 2024" in written


def test_without_a_voice_the_text_stands_alone(folder: Path) -> None:
    family = LlasaFamily(folder)
    layout = family.layout("hello", "is not said", [])
    assert "START|>hello<|TEXT" in family.tokenizer.decode(list(layout.token_ids))
    assert layout.token_ids[-1] == family.tokenizer.convert_tokens_to_ids("<|SPEECH_GENERATION_START|>")


def test_languages_without_spaces_get_none(folder: Path) -> None:
    family = LlasaFamily(folder)
    assert "START|>你好世界<|TEXT" in family.tokenizer.decode(list(family.layout("世界", "你好", [1]).token_ids))


def test_a_voice_needs_its_words(folder: Path) -> None:
    with pytest.raises(InputError, match="prompt_text: is empty"):
        LlasaFamily(folder).layout("hello", "", [1, 2])


def test_a_chat_template_is_needed(tmp_path: Path) -> None:
    folder = write_llasa(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{- messages[0].content }}")
    with pytest.raises(UserError, match="the chat template does not work"):
        LlasaFamily(folder)
    (folder / "chat_template.jinja").write_text("{%- for m in messages %}{{- m.content }}.{%- endfor %}")
    LlasaFamily(folder)
    (folder / "chat_template.jinja").write_text("{%- for m in messages %}{{- m.content | lower }}{%- endfor %}")
    with pytest.raises(UserError, match="the chat template does not"):
        LlasaFamily(folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="lacks a chat template"):
        LlasaFamily(folder)
