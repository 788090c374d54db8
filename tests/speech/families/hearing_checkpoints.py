"""Tiny checkpoints with random weights of the families that hear, and what transformers' classes say of a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from speech.families.native import NativeFamily
from speech.families.qwen2_audio import Qwen2AudioFamily
from speech.records import Utterance

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
MELS = 16


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades, so that frames differ from one another."""
    count = round(16_000 * seconds)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.1 * noise * (1 + np.sin(np.arange(count) / 1500))).astype(np.float32)


def byte_tokenizer(special: Sequence[str], **tokens: str) -> PreTrainedTokenizerFast:
    """A token for each byte and for each special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def randomise(model: PreTrainedModel, scale: float = 3.0) -> PreTrainedModel:
    """Weights far from zero and norms far from one, so that logits are far from uniform and every tensor counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(scale * 0.02 * noise * (4 if "embed_tokens" in name or "lm_head" in name else 1))
            elif name.endswith("bias"):
                parameter.copy_(0.05 * noise)
            else:
                parameter.copy_(1 + 0.2 * noise)
    return model.eval()


def to_hub_names(folder: Path) -> None:
    """transformers 5.19 writes the language model under a prefix that no checkpoint of the hub has."""
    file = folder / "model.safetensors"
    old, new = "language_model.model.model.", "language_model.model."
    tensors = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def write_qwen2_audio(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer = byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    Qwen2AudioProcessor(WhisperFeatureExtractor(MELS), tokenizer).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": MELS,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "d_model": 32,
        },
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = randomise(Qwen2AudioForConditionalGeneration(config))
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(special[:3:2]))
    model.to(dtype).save_pretrained(folder)
    to_hub_names(folder)
    return folder


def qwen2_audio_inputs(family: NativeFamily, sound: np.ndarray, said: Utterance) -> dict[str, torch.Tensor]:
    assert isinstance(family, Qwen2AudioFamily)
    return dict(family.processor(text=family.prompt_text(said), audio=[sound], return_tensors="pt"))


@dataclass(frozen=True)
class Case:
    """A family: how its tiny checkpoint is written, and how its native class hears a recording.

    Attributes:
        inputs: what transformers' own processor makes of a recording, `input_ids` among it.
        scale: factor between the native class's logits and those of its causal language model.
    """

    family: type[NativeFamily]
    native: type[PreTrainedModel]
    write: Callable[..., Path]
    inputs: Callable[[NativeFamily, np.ndarray, Utterance], dict[str, Any]]
    seconds: tuple[float, ...] = (0.2, 1.0, 1.37, 5.004, 29.99, 30.0)
    scale: float = 1.0


CASES = {
    "qwen2_audio": Case(Qwen2AudioFamily, Qwen2AudioForConditionalGeneration, write_qwen2_audio, qwen2_audio_inputs),
}
