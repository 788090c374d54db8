"""The demo model: random initialisation, then our own SFT: `python -m assets.build.model {init,collect}`.

`init` writes an untrained checkpoint, `speechrl train configs/asr_demo_sft.yaml` trains it, and `collect` copies the
result into `assets/asr_demo`. `make assets` runs all three.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3 import Qwen3Config

from speech.families.demo import TOKENIZER_FILES, save_demo_model
from speech.families.demo_model import DemoSpeechConfig, DemoSpeechLM

INIT = Path("build/asr_demo_init")
FINAL = Path("assets/asr_demo")
RUN = Path("runs/asr_demo_sft")


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


def collect(run: Path, out: Path) -> None:
    """Copy the run's export, and its curve, to where the demo expects them."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run / "export", out)
    points = []
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "valid/wer" in line or line["step"] % 50 == 0:
            shown = ("step", "learner/nll", "learner/ctc", "valid/wer")
            points.append({k: line[k] for k in shown if k in line})
    text = "".join(json.dumps(point) + "\n" for point in points)
    (out / "sft_curve.jsonl").write_text(text, encoding="utf-8")
    print(text, end="")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.model", description=__doc__)
    parser.add_argument("action", choices=("init", "collect"))
    parser.add_argument("--tokenizer", type=Path, default=Path("assets/tokenizer"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.action == "init":
        print(f"{INIT}: {initialise(arguments.tokenizer, INIT, arguments.seed):,} parameters")
    else:
        collect(RUN, FINAL)
        print(f"{FINAL}: from {RUN}")


if __name__ == "__main__":
    main()
