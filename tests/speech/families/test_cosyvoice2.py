"""CosyVoice2's language model in its Hugging Face form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speech.errors import InputError
from speech.families.cosyvoice2 import CosyVoice2Family
from tests.speech.families.tts_checkpoints import write_cosyvoice2


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> CosyVoice2Family:
    return CosyVoice2Family(write_cosyvoice2(tmp_path_factory.mktemp("cosyvoice2") / "model"))


def test_the_prompt_is_that_of_the_chat_template(family: CosyVoice2Family) -> None:
    chat = [
        {"role": "user", "content": "希望你好。打开灯"},
        {"role": "assistant", "content": "<|s_3|><|s_1|>"},
    ]
    expected = family.tokenizer.apply_chat_template(chat, tokenize=True, continue_final_message=True, return_dict=False)
    assert list(family.layout("打开灯", "希望你好。", [3, 1]).token_ids) == expected


def test_one_of_the_three_stop_tokens_is_an_action(family: CosyVoice2Family) -> None:
    ids = family.tokenizer.convert_tokens_to_ids(["<|eos1|>", "<|eos2|>", "<|eos3|>"])
    assert family.stop_token_ids == (ids[0],)
    assert not {ids[1], ids[2]} & set(family.allowed_token_ids)


def test_the_mask_is_what_keeps_text_out(family: CosyVoice2Family) -> None:
    """The recipe's output layer gives text a zero row, and its −∞ bias has no place in Qwen2."""
    model = family.load_language_model()
    ids = torch.tensor([family.layout("hello", "", []).token_ids])
    with torch.no_grad():
        probabilities = model(ids).logits[0, -1].softmax(-1)
    assert "lm_head.bias" not in dict(model.named_parameters())
    assert probabilities[: family.speech_ids.start].sum() > 0.01


def test_instructions_and_sounds_may_stand_in_the_text(family: CosyVoice2Family) -> None:
    written = family.tokenizer.decode(
        list(family.layout("speak softly<|endofprompt|>hello [breath]", "", []).token_ids)
    )
    assert written == "<|sos|>speak softly<|endofprompt|>hello [breath]<|task_id|>"
    # The voice is continued by the text: the instruction is said by nobody, so it stands before both.
    written = family.tokenizer.decode(list(family.layout("softly<|endofprompt|>hello", "good day. ", [3]).token_ids))
    assert written == "<|sos|>softly<|endofprompt|>good day.hello<|task_id|><|s_3|>"
    with pytest.raises(InputError, match="text: is empty"):
        family.layout("softly<|endofprompt|> ", "", [])
    with pytest.raises(InputError, match="text: holds an instruction"):
        family.layout("softly<|endofprompt|>now<|endofprompt|>hello", "", [])
    with pytest.raises(InputError, match=r"holds the control token <\|im_end\|>"):
        family.layout("hello<|im_end|>", "", [])


def test_a_voice_needs_its_words(family: CosyVoice2Family) -> None:
    with pytest.raises(InputError, match="prompt_text: is empty"):
        family.layout("hello", " ", [1, 2])


def test_weights_keep_the_type_of_the_checkpoint(family: CosyVoice2Family, tmp_path: Path) -> None:
    new = {name: parameter + 0.25 for name, parameter in family.load_language_model().named_parameters()}
    family.export(tmp_path / "new", {"language_model": new})
    again = CosyVoice2Family(tmp_path / "new")
    assert again._stored_dtype == torch.bfloat16
    for name, parameter in again.load_language_model().named_parameters():
        assert torch.equal(parameter, new[name].bfloat16().float())
