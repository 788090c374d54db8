"""Start weights of the projector: `python -m assets.build.whisper_smollm_align`.

The language model is frozen and knows text only. So the projector first learns, without it, to write text into the
space of its token embeddings: CTC (Graves et al. 2006), whose score of a token is the projector's output times the
token's embedding. A position then reads like a token of the transcript, or like one between words. This needs no pass
through the language model, which is what takes the time of supervised training.

Encoder states are computed once and kept under `--states` (0.04 MB a second of speech), in parts: an interrupted run
goes on where it was. They are those that the encoder actors of a run compute with `encoder.dtype: bfloat16`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import nn

from assets.build.whisper_smollm import OUT as INIT
from assets.build.whisper_smollm import put_projector
from speech.audio import load_audio
from speech.edits import EditCounts, unit_edits
from speech.errors import UserError
from speech.families import load_family
from speech.families.hearing.composed import ComposedFamily
from speech.manifests import load_manifest
from speech.records import Utterance

OUT, STATES = Path("build/asr_whisper_smollm_aligned"), Path("build/whisper_states")
PART, TOGETHER = 500, 8
"""Utterances in a file of states, and at a time in the encoder."""
BATCH, LR, WARMUP, FLOOR = 32, 2e-3, 20, 0.03
SHARPNESS = 25.0
"""Score of a position that is exactly the embedding of a token."""
BLANK = "_"
"""Token between words that disturbs SmolLM2 least: with one behind each token of a text, it repeats the text with a
cross-entropy of 1.13 a token; of 1.26 with a blank, 1.70 with zeros, 4.60 with `<|endoftext|>`; 0.49 without any."""


@dataclass(frozen=True)
class Heard:
    """An utterance: encoder states (n, width) float16, and the transcript's tokens."""

    states: torch.Tensor
    tokens: list[int]


class Alignment(nn.Module):
    """CTC on a projector against token embeddings; class 0 is the blank, which has the embedding of BLANK.

    Args:
        projector: learns.
        embeddings: (1 + tokens, width) of the blank and of the tokens that occur.
    """

    def __init__(self, projector: nn.Module, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.projector = projector
        self.norm = float(embeddings.norm(dim=-1).mean())
        self.register_buffer("embeddings", embeddings.clone())
        self.register_buffer("directions", F.normalize(embeddings, dim=-1))

    def scores(self, embedded: torch.Tensor) -> torch.Tensor:
        """(…, width) → (…, 1 + tokens)."""
        scores: torch.Tensor = SHARPNESS / self.norm * (embedded @ self.directions.T)
        return scores

    def forward(self, states: Sequence[torch.Tensor], targets: Sequence[list[int]]) -> torch.Tensor:
        """CTC loss a token, plus the distance of each position from the embedding that it stands for (the mean over
        classes by their probabilities), relative to an embedding's norm: the language model reads real embeddings well
        and others badly, however clear their direction is."""
        embedded = [self.projector(item) for item in states]
        logprobs = self.scores(nn.utils.rnn.pad_sequence(embedded)).log_softmax(-1)
        lengths = torch.tensor([len(item) for item in embedded]), torch.tensor([len(item) for item in targets])
        flat = torch.tensor([token for item in targets for token in item])
        ctc = F.ctc_loss(logprobs, flat, *lengths, blank=0, reduction="sum", zero_infinity=True)
        together = torch.cat(embedded)
        with torch.no_grad():
            meant = self.scores(together).softmax(-1) @ self.embeddings
        distance = (together - meant).square().sum(-1).mean() / self.norm**2
        return ctc / max(1, len(flat)) + distance

    @torch.no_grad()
    def read(self, states: torch.Tensor) -> list[int]:
        """The best path's classes without blanks and repetitions."""
        best = self.scores(self.projector(states)).argmax(-1).tolist()
        return [c for place, c in enumerate(best) if c and (place == 0 or best[place - 1] != c)]


def encode(family: ComposedFamily, utterances: Sequence[Utterance], folder: Path, name: str) -> Iterator[Path]:
    """Files of encoder states by utterance id, in order; a file that exists with the right ids is kept."""
    encoder = family.load_encoder(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    for first in track(range(0, len(utterances), PART), f"encoding {name}"):
        path = folder / f"{name}-{first:06d}.safetensors"
        part = utterances[first : first + PART]
        if not path.is_file() or set(load_file(path)) != {utterance.id for utterance in part}:
            found: dict[str, torch.Tensor] = {}
            for start in range(0, len(part), TOGETHER):
                some = part[start : start + TOGETHER]
                with torch.inference_mode():
                    states = encoder([encoder.features(load_audio(item, family.sample_rate)) for item in some])
                found |= {item.id: s.half().contiguous() for item, s in zip(some, states, strict=True)}
            save_file(found, path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
        yield path


def load(family: ComposedFamily, manifest: Path, folder: Path, limit: int | None) -> list[Heard]:
    """The utterances of a manifest with their encoder states."""
    utterances = list(load_manifest(manifest).utterances)[:limit]
    states: dict[str, torch.Tensor] = {}
    for path in encode(family, utterances, folder, manifest.stem):
        states |= load_file(path)
    tokens = family.tokenizer.encode
    return [Heard(states[item.id], tokens(item.text, add_special_tokens=False)) for item in utterances]


def align(model: Alignment, train: list[Heard], classes: dict[int, int], epochs: int, seed: int) -> Iterator[float]:
    """Train; yields each step's loss. The learning rate falls linearly."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    rng, size = random.Random(f"{seed} align"), min(BATCH, len(train))
    steps = epochs * (len(train) // size)
    for step in range(steps):
        place = step % (len(train) // size)
        if place == 0:
            rng.shuffle(train)
        batch = train[place * size : (place + 1) * size]
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP) * max(FLOOR, 1 - step / steps)
        loss = model([item.states.float() for item in batch], [[classes[t] for t in item.tokens] for item in batch])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        yield float(loss.detach())


def token_errors(model: Alignment, heard: Sequence[Heard], used: Sequence[int]) -> float:
    """Token error rate of the best paths; a token that training never saw is an error."""
    total = EditCounts()
    for item in heard:
        read = [str(used[place - 1]) for place in model.read(item.states.float())]
        total += unit_edits([str(token) for token in item.tokens], read)
    return total.rate


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.whisper_smollm_align", description=__doc__)
    parser.add_argument("--model", type=Path, default=INIT, help="(default: %(default)s)")
    parser.add_argument("--speech", type=Path, default=Path("build/general_speech"), help="(default: %(default)s)")
    parser.add_argument("--states", type=Path, default=STATES, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the order (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="utterances to learn from, for a quick trial")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        run(arguments)
    except UserError as error:
        raise SystemExit(str(error)) from error


def run(arguments: argparse.Namespace) -> None:
    """Encode, train, and write the model with the trained projector.

    Raises:
        UserError: the output exists, or model or speech are missing.
    """
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists; choose another --out or remove it")
    family = load_family(arguments.model)
    if not isinstance(family, ComposedFamily):
        raise UserError(f"{arguments.model}: not a model of parts; make one by python -m assets.build.whisper_smollm")
    manifests = [arguments.speech / f"{split}.jsonl" for split in ("train", "valid")]
    for manifest in manifests:
        if not manifest.is_file():
            raise UserError(f"{manifest}: no such file; make it by python -m assets.build.general_speech --hours 3")
    started = time.process_time()
    train, valid = (load(family, manifest, arguments.states, arguments.limit) for manifest in manifests)
    print(f"encoder states: {time.process_time() - started:.0f} CPU s")
    used = sorted({token for item in train for token in item.tokens})
    table = family.load_language_model().get_input_embeddings().weight.detach()
    blank = family.tokenizer.encode(BLANK, add_special_tokens=False)[0]
    model = Alignment(family.load_adaptor().requires_grad_(True), table[[blank, *used]])
    started, mean = time.process_time(), 0.0
    curve = []
    classes = {token: place for place, token in enumerate(used, 1)}
    for step, loss in enumerate(align(model, train, classes, arguments.epochs, arguments.seed), 1):
        mean = loss if step == 1 else 0.95 * mean + 0.05 * loss
        if step % 25 == 0:
            curve.append({"step": step, "loss": round(mean, 4)})
            print(f"step {step}: {mean:.3f}", flush=True)
    print(f"CTC: {time.process_time() - started:.0f} CPU s")
    print(f"token error rate of {manifests[1]}: {100 * token_errors(model, valid, used):.1f} %")
    shutil.copytree(arguments.model, arguments.out)
    put_projector(arguments.out, model.projector.state_dict())
    text = "".join(json.dumps(point) + "\n" for point in curve)
    (arguments.out / "alignment_curve.jsonl").write_text(text, encoding="utf-8")
    print(f"{arguments.out}: written")


if __name__ == "__main__":
    main()
