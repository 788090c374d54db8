"""The demo model that hears, untrained: `python -m assets.build.model`.

`speechrl train configs/asr_demo_sft.yaml` trains it, and `assets.build.collect` copies the result into
`assets/asr_demo`. `make assets` runs all three.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3 import Qwen3Config

from speech.families.demo.demo_model import DemoSpeechConfig, DemoSpeechLM
from speech.families.demo.hearing import TOKENIZER_FILES, save_demo_model

INIT = Path("build/asr_demo_init")


def initialise(tokenizer_folder: Path, out: Path, seed: int) -> int:
    """Write an untrained demo model; returns its number of parameters."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    torch.manual_seed(seed)
    text_config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        attention_dropout=0.0,
        initializer_range=0.05,  # the usual 0.02 suits wide layers
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
    )
    audio_token = tokenizer.convert_tokens_to_ids("<|audio|>")
    model = DemoSpeechLM(
        DemoSpeechConfig(text_config=text_config, audio_token_id=audio_token, encoder_layers=4, adaptor_stack=1)
    )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    save_demo_model(model, out)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, out / name)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.model", description=__doc__)
    parser.add_argument("--tokenizer", type=Path, default=Path("assets/tokenizer"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{INIT}: {initialise(arguments.tokenizer, INIT, arguments.seed):,} parameters")


if __name__ == "__main__":
    main()
