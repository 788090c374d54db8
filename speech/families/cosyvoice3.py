"""CosyVoice3's language model (Fun-CosyVoice3-0.5B, arXiv 2505.17589) in the Hugging Face form of its own recipe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from speech.families.checkpoint import LowRank
from speech.families.cosyvoice2 import START, TASK, CosyVoice2Family
from speech.records import INSTRUCTION_END

SIZE = 6561
"""Tokens of the codec, `<|s_0|>` … `<|s_6560|>`. 200 more rows follow, of which four have a meaning."""

ALIASES = {START: f"<|s_{SIZE}|>", "<|eos|>": f"<|s_{SIZE + 1}|>", TASK: f"<|s_{SIZE + 2}|>"}
"""Control tokens that the recipe's vocabulary holds twice: the name that it gave them, and the row of the original."""

ROLE = "You are a helpful assistant."


class CosyVoice3Family(CosyVoice2Family):
    """`<|sos|>` You are a helpful assistant. `<|endofprompt|>` words of the voice, text `<|task_id|>` voice → speech
    `<|s_6562|>`.

    A Qwen2 as `examples/grpo/cosyvoice3/pretrained_to_huggingface.py` writes it: speech tokens `<|s_0|>` …
    `<|s_6760|>`, then `<|sos|>`, `<|eos|>` and `<|task_id|>`, each with the weights of one of these.

    The model refuses prompts without `<|endofprompt|>`, and its authors write the same sentence before it everywhere;
    an instruction of the utterance follows that sentence.

    Any of the 200 rows behind the codec's ends speech in the authors' code. One is allowed here, the one that was
    the target in training: its original row, so that a conversion back finds what was learned. In an export both
    names of a control token have the same weights again, as in the recipe.

    Raises:
        UserError: a file or a token is missing.
    """

    name = "cosyvoice3"
    model_types = ("qwen2",)
    codec = "cosyvoice3"
    stop_token = ALIASES["<|eos|>"]
    markers = (*ALIASES, *ALIASES.values())

    @classmethod
    def needed_tokens(cls) -> tuple[str, ...]:
        return (*super().needed_tokens(), INSTRUCTION_END)

    @cached_property
    def speech_ids(self) -> range:
        """The codec's alone; see `CausalSpeechFamily`."""
        return super().speech_ids[:SIZE]

    def complete_instruction(self, instruction: str) -> str:
        """Behind the sentence that always stands there, unless the user wrote it."""
        if instruction.startswith(ROLE):
            return instruction
        return f"{ROLE} {instruction.strip()}".strip()

    def export(self, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor | LowRank]]) -> None:
        """See `CausalSpeechFamily`. What was trained under one name of a control token is written under both."""
        written = {
            part: {name: _alike(name, t, self.second_names) for name, t in own.items()} for part, own in states.items()
        }
        super().export(folder, written)

    @cached_property
    def second_names(self) -> dict[int, int]:
        """Ids that stand neither in prompts nor in samples → those that stand there with the same meaning."""
        # Prompts hold the recipe's names, but what is sampled is the original row.
        named = [(row, alias) if alias != "<|eos|>" else (alias, row) for alias, row in ALIASES.items()]
        return {self._id(second): self._id(first) for second, first in named}


def _alike(name: str, tensor: torch.Tensor | LowRank, sources: Mapping[int, int]) -> torch.Tensor | LowRank:
    """The tensor with rows copied over others from their sources, where its rows are those of tokens."""
    if isinstance(tensor, LowRank) or name not in ("model.embed_tokens.weight", "lm_head.weight"):
        return tensor
    tensor = tensor.detach().clone()
    for target, source in sources.items():
        tensor[target] = tensor[source]
    return tensor
