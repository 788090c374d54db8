"""Tiny TTS checkpoints with random weights, in the forms in which the real ones are published."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from assets.build.tts_model import byte_tokenizer, initialise_demo_tts
from speech.families.cosyvoice3 import ALIASES, SIZE
from speech.families.llasa import SPEECH_END, SPEECH_START, TEXT_END, TEXT_START

TOKENIZER = Path("assets/tokenizer")
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512}  # fmt: skip

# Llama 3.2's in its essentials: a system turn with a date that is today's unless one is given.
LLAMA_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if date_string is not defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n<|eot_id|>' }}"
    "{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
)
COSYVOICE_TEMPLATE = (
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '<|sos|>' + m.content + '<|task_id|>' }}{%- else %}{{- m.content }}{%- endif %}"
    "{%- endfor %}"
)


def write_demo_tts(folder: Path, codec_size: int = 20, max_voice_tokens: int = 4, scale: float = 3.0) -> Path:
    """The demo family's, with the tokenizer of the embedded corpus."""
    initialise_demo_tts(
        TOKENIZER, folder, codec_size, 0, codec="demo", max_voice_tokens=max_voice_tokens, hidden_size=64, layers=2
    )
    tensors = {name: tensor * scale if tensor.ndim > 1 else tensor for name, tensor in _stored(folder).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_llasa(folder: Path, codec_size: int = 20) -> Path:
    """Llama with untied output layer; speech tokens after eight markers, as the real one has them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    turns = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(
        {"bos_token": turns[0], "eos_token": turns[3], "additional_special_tokens": turns[1:3]}
    )
    tokenizer.chat_template = LLAMA_TEMPLATE
    others = ["<|TEXT_GENERATION_START|>", "<|TEXT_GENERATION_END|>",
              "<|SPEECH_UNDERSTANDING_START|>", "<|SPEECH_UNDERSTANDING_END|>"]  # fmt: skip
    markers = [*others[:2], TEXT_START, TEXT_END, *others[2:], SPEECH_START, SPEECH_END]
    tokenizer.add_tokens([*markers, *(f"<|s_{i}|>" for i in range(codec_size))])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    _save(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **SHAPE)), folder)
    return folder


def write_orpheus(folder: Path, codebook: int = 3) -> Path:
    """Llama with a tied output layer; `<custom_token_0>` … after Llama's own, the last two of them unused, and no chat
    template."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
    tokenizer.add_tokens([f"<custom_token_{i}>" for i in range(10 + 7 * codebook + 2)])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    _save(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SHAPE)), folder)
    return folder


def write_neutts(folder: Path, codec_size: int = 20) -> Path:
    """Qwen2 with a tied output layer; markers, then `<|speech_0|>` …"""
    tokenizer = byte_tokenizer()
    names = ["TEXT_REPLACE", "SPEECH_REPLACE", "TEXT_PROMPT_START", "TEXT_PROMPT_END", "SPEECH_GENERATION_START",
             "SPEECH_GENERATION_END"]  # fmt: skip
    tokenizer.add_tokens([*(f"<|{name}|>" for name in names), *(f"<|speech_{i}|>" for i in range(codec_size))])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    _save(Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape)), folder)
    return folder


def write_cosyvoice2(folder: Path, codec_size: int = 20) -> Path:
    """Qwen2 with an output layer that is zero for text and has a bias, padded to a multiple of 128, in bfloat16."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|endofprompt|>", "[breath]"]}
    )
    first = len(tokenizer)
    markers = ["<|eos1|>", "<|eos2|>", "<|eos3|>", "<|sos|>", "<|task_id|>"]
    tokenizer.add_tokens([*(f"<|s_{i}|>" for i in range(codec_size)), *markers])
    tokenizer.chat_template = COSYVOICE_TEMPLATE
    tokenizer.save_pretrained(folder)
    rows = -(-len(tokenizer) // 128) * 128
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, tie_word_embeddings=False, use_bias=True, **shape))
    with torch.no_grad():
        model.lm_head.weight[:first] = 0
        model.lm_head.weight[first + codec_size + 3 :] = 0
    _save(model.to(torch.bfloat16), folder)
    bias = torch.full((rows,), -torch.inf, dtype=torch.bfloat16)
    bias[first : first + codec_size + 3] = 0.1
    save_file({**_stored(folder), "lm_head.bias": bias}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_cosyvoice3(folder: Path) -> Path:
    """Qwen2 as the recipe converts it, with all 6,761 speech tokens, padded to a multiple of 128, in bfloat16."""
    tokenizer = byte_tokenizer()
    marks = ["<|im_start|>", "<|im_end|>", "<|endofprompt|>", "[breath]", "<strong>", "<|endofsystem|>", "[AA0]"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    first = len(tokenizer)
    tokenizer.add_tokens([*(f"<|s_{i}|>" for i in range(SIZE + 200)), *ALIASES])
    tokenizer.chat_template = COSYVOICE_TEMPLATE
    tokenizer.save_pretrained(folder)
    rows = -(-len(tokenizer) // 128) * 128
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, tie_word_embeddings=False, **shape))
    with torch.no_grad():
        model.lm_head.weight[:first] = 0
        model.lm_head.weight[first + SIZE + 200 :] = 0
        for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
            for alias, row in ALIASES.items():
                weight[tokenizer.convert_tokens_to_ids(alias)] = weight[tokenizer.convert_tokens_to_ids(row)]
    _save(model.to(torch.bfloat16), folder)
    return folder


WRITERS = {
    "demo_tts": write_demo_tts,
    "llasa": write_llasa,
    "cosyvoice2": write_cosyvoice2,
    "orpheus": write_orpheus,
    "neutts": write_neutts,
    "cosyvoice3": write_cosyvoice3,
}
ESPEAK = "tests.speech.families.phonemes:espeak"
OPTIONS = {"neutts": {"phonemes": ESPEAK}}
"""Of families that read no plain text without them."""


def _save(model: PreTrainedModel, folder: Path, scale: float = 3.0) -> None:
    """Scaled up, so that logits are far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
