"""A tiny checkpoint of the demo family, written by the tests that need one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.qwen3 import Qwen3Config

from speech.families.demo.demo_model import DemoSpeechConfig, DemoSpeechLM
from speech.families.demo.hearing import save_demo_model

SPECIAL = ["<|pad|>", "<|endoftext|>", "<|audio|>", "<|audio_start|>", "<|audio_end|>", "<|transcribe|>"]


def write_demo_checkpoint(
    folder: Path, *, tied: bool = True, scale: float = 1.0, seed: int = 0, layers: int = 2
) -> Path:
    """Write a random model with a byte-level tokenizer of 262 ids.

    Args:
        tied: share the embedding with the output layer.
        scale: factor on all weight matrices; above 1 the distributions are far from uniform, so that wrong weights
            show in log-probs.
        layers: of the language model.
    """
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[1], "pad_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

    torch.manual_seed(seed)
    text_config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=tied,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    config = DemoSpeechConfig(
        text_config=text_config, encoder_dim=32, encoder_layers=1, encoder_heads=2, encoder_ffn=48
    )
    model = DemoSpeechLM(config)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    save_demo_model(model, folder)
    return folder
