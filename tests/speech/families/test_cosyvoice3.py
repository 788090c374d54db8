"""CosyVoice3's language model in its Hugging Face form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speech.errors import InputError
from speech.families import load_family
from speech.families.cosyvoice3 import ALIASES, CosyVoice3Family
from tests.speech.families.tts_checkpoints import write_cosyvoice3

ROLE = "You are a helpful assistant."


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> CosyVoice3Family:
    found = load_family(write_cosyvoice3(tmp_path_factory.mktemp("cosyvoice3") / "model"))
    assert isinstance(found, CosyVoice3Family)
    return found


def written(family: CosyVoice3Family, text: str, words: str = "", voice: tuple[int, ...] = ()) -> str:
    return family.tokenizer.decode(list(family.layout(text, words, voice).token_ids))


def test_the_prompt_is_that_of_the_chat_template(family: CosyVoice3Family) -> None:
    chat = [
        {"role": "user", "content": f"{ROLE}<|endofprompt|>希望你好。打开灯"},
        {"role": "assistant", "content": "<|s_3|><|s_1|>"},
    ]
    expected = family.tokenizer.apply_chat_template(chat, tokenize=True, continue_final_message=True, return_dict=False)
    assert list(family.layout("打开灯", "希望你好。", [3, 1]).token_ids) == expected


def test_an_instruction_follows_the_sentence_that_always_stands_there(family: CosyVoice3Family) -> None:
    assert written(family, "hello [breath]") == f"<|sos|>{ROLE}<|endofprompt|>hello [breath]<|task_id|>"
    expected = f"<|sos|>{ROLE} speak softly.<|endofprompt|>hello<|task_id|>"
    assert written(family, "speak softly.<|endofprompt|>hello") == expected
    assert written(family, f"{ROLE} speak softly.<|endofprompt|>hello") == expected
    with pytest.raises(InputError, match=r"holds the control token <\|endofsystem\|>"):
        family.layout("hello<|endofsystem|>", "", [])
    with pytest.raises(InputError, match="prompt_text: is empty"):
        family.layout("hello", " ", [1, 2])


def test_the_original_row_ends_speech(family: CosyVoice3Family) -> None:
    names = family.tokenizer.convert_ids_to_tokens([family.speech_ids[-1], *family.stop_token_ids])
    assert names == ["<|s_6560|>", "<|s_6562|>"]
    ids = set(family.tokenizer.convert_tokens_to_ids(["<|eos|>", "<|s_6561|>", "<|s_6563|>", "<|s_6760|>"]))
    assert not ids & set(family.allowed_token_ids)


def test_an_export_holds_what_was_trained_under_both_names(family: CosyVoice3Family, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    own = family.load_language_model()
    new = {n: p.detach() + torch.randn(p.shape, generator=generator) for n, p in own.named_parameters()}
    family.export(tmp_path / "new", {"language_model": new})
    again = dict(CosyVoice3Family(tmp_path / "new").load_language_model().named_parameters())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for alias, row in ALIASES.items():
            first, second = family.tokenizer.convert_tokens_to_ids([alias, row])
            trained = second if alias == "<|eos|>" else first
            for token in (first, second):
                assert torch.equal(again[name][token], new[name][trained].bfloat16().float()), (name, alias)
