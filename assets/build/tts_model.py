"""The demo model that speaks, untrained: `python -m assets.build.tts_model`.

A small Qwen3 whose vocabulary is text, markers and speech tokens. `speechrl train configs/tts_demo_sft.yaml` trains it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

from assets.build.tokenizer import END, PAD
from speech.codecs import load_codec
from speech.families.demo.speaking import SECTION, SPEECH_END, SPEECH_START, TEXT_START, VOICE_START

INIT = Path("build/tts_demo_init")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz' "
"""What the embedded corpus is written in."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: a small model learns to spell sooner than it learns the sound of every subword."""
    vocabulary = {token: i for i, token in enumerate([PAD, END, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def initialise_demo_tts(
    tokenizer_folder: Path | None,
    out: Path,
    codec_size: int,
    seed: int,
    *,
    codec: str,
    characters: str | None = CHARACTERS,
    max_voice_tokens: int = 100,
    hidden_size: int = 128,
    layers: int = 4,
    max_positions: int = 2048,
) -> int:
    """Write an untrained demo TTS model; returns its number of parameters.

    Args:
        tokenizer_folder: a text tokenizer to extend, or None for one token a byte.
        out: the model's folder; replaced if it exists.
        codec_size: number of speech tokens.
        seed: of the random weights.
        codec: registry name of the codec.
        characters: what texts may be written in; None for everything.
        max_voice_tokens: longest prompt voice, in tokens; a whole number of the codec's frames.
        hidden_size: width; a multiple of 32.
        layers: number of decoder layers.
        max_positions: longest prompt and response together.
    """
    tokenizer = (
        byte_tokenizer() if tokenizer_folder is None else PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [VOICE_START, TEXT_START, SPEECH_START, SPEECH_END]})
    tokenizer.add_tokens([AddedToken(f"<|s_{i}|>", normalized=False) for i in range(codec_size)])
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=max(1, hidden_size // 64),
        head_dim=32,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        attention_dropout=0.0,
        initializer_range=0.05,  # the usual 0.02 suits wide layers
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(SPEECH_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    section = {
        "codec": codec,
        "codec_size": codec_size,
        "max_voice_tokens": max_voice_tokens,
        "characters": characters,
    }
    model = Qwen3ForCausalLM(config)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**written, SECTION: section}, indent=2) + "\n", encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.tts_model", description=__doc__)
    parser.add_argument("--codec", type=Path, default=Path("assets/tts_codec"), help="its folder (%(default)s)")
    parser.add_argument("--tokenizer", type=Path, default=Path("assets/tokenizer"), help="to extend (%(default)s)")
    parser.add_argument("--out", type=Path, default=INIT, help="folder (default: %(default)s)")
    parser.add_argument("--max-voice-tokens", type=int, default=50, help="longest prompt voice (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    codec = load_codec(arguments.codec)
    count = initialise_demo_tts(
        arguments.tokenizer,
        arguments.out,
        codec.size,
        arguments.seed,
        codec=codec.name,
        max_voice_tokens=arguments.max_voice_tokens,
    )
    print(f"{arguments.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
