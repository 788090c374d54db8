"""A Qwen3-ASR checkpoint in transformers' native form, with random weights and a byte-level tokenizer; a tiny one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"]

# Says what the released template says: one system turn, one user turn of audio, then the assistant's turns.
CHAT_TEMPLATE = (
    "{{- '<|im_start|>system\\n' -}}"
    "{%- for m in messages if m.role == 'system' -%}{{- m.content[0].text -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n<|im_start|>user\\n' -}}"
    "{%- for m in messages if m.role == 'user' -%}{%- for c in m.content if c.type == 'audio' -%}"
    "{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}"
    "{%- endfor -%}{%- endfor -%}{{- '<|im_end|>\\n' -}}"
    "{%- for m in messages if m.role == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' + m.content[0].text + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def write_checkpoint(
    folder: Path,
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    text: Mapping[str, Any] = {},
    audio: Mapping[str, Any] = {},
    scale: float = 3.0,
) -> Path:
    """Write model, processor and generation settings.

    Args:
        text, audio: other sizes of the language model and of the encoder.
        scale: of the random matrices; tiny ones are scaled up so that logits are far from uniform.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(alphabet)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        audio_token="<|audio_pad|>",
        audio_bos_token="<|audio_start|>",
        audio_eos_token="<|audio_end|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.add_tokens(["<asr_text>"])
    extractor = Qwen3ASRFeatureExtractor(feature_size=audio.get("num_mel_bins", 16))
    Qwen3ASRProcessor(extractor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)

    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    config = Qwen3ASRConfig(
        audio_config={
            "num_mel_bins": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "d_model": 32,
            "output_dim": 64,
            "downsample_hidden_size": 8,
            "n_window_infer": 200,
            **audio,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "tie_word_embeddings": tied,
            **text,
        },
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        pad_token_id=stops[1],
        eos_token_id=stops,
        tie_word_embeddings=tied,
        dtype=dtype,
    )
    torch.manual_seed(0)
    model = Qwen3ASRForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=stops[1], max_new_tokens=512)
    model.to(dtype).save_pretrained(folder)
    return folder
