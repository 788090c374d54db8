"""Trains the demo's subword tokenizer: `python -m assets.build.tokenizer [--out assets/tokenizer]`.

Byte-level BPE, so that any text of any language goes in and comes out unchanged. It learns from sentences of the
general domain.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from assets.build import texts

VOCABULARY_SIZE = 512
PAD, END = "<|pad|>", "<|endoftext|>"
SPECIAL_TOKENS = [PAD, END, "<|audio|>", "<|audio_start|>", "<|audio_end|>", "<|transcribe|>"]  # ids 0 to 5


def training_texts(seed: int) -> list[str]:
    """The texts that the tokenizer may learn from."""
    return [sentence.text for part in texts.general(seed)[:2] for sentence in part]


def train(sentences: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of VOCABULARY_SIZE tokens whose decoding is the exact inverse of its encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=SPECIAL_TOKENS[2:],
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.tokenizer", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("assets/tokenizer"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the sentences (default: %(default)s)")
    arguments = parser.parse_args()
    sentences = training_texts(arguments.seed)
    tokenizer = train(sentences)
    tokenizer.save_pretrained(arguments.out)
    tokens = sum(map(len, tokenizer(sentences)["input_ids"]))
    print(f"{arguments.out}: {len(tokenizer)} tokens, {tokens / len(sentences):.1f} a sentence")


if __name__ == "__main__":
    main()
