"""What TTS models share whose checkpoint is a plain causal LM with numbered speech tokens (`<|s_0|>`, `<|s_1|>`, …) in
its vocabulary: reading and writing the folder, finding the tokens, and text that is fit to be spoken."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from speech.errors import UserError, utf8_complaint
from speech.families.base import SpeechFamily, unusable
from speech.families.checkpoint import LowRank, copy_files, new_folder, read_tensors, replaced
from speech.records import INSTRUCTION_END
from speech.runtime.checkpoint_files import require_files, weight_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "chat_template.jinja")  # fmt: skip


class CausalSpeechFamily(SpeechFamily):
    """One folder of transformers' causal LM form, safetensors and a fast tokenizer.

    Attributes:
        speech_token: how the speech tokens are named, `{}` for their number.
        first_speech_token: number of the codec's token 0.
        stop_token: the token that ends speech.
        markers: further tokens that the layout needs.
    """

    speech_token: ClassVar[str] = "<|s_{}|>"
    first_speech_token: ClassVar[int] = 0
    stop_token: ClassVar[str]
    markers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        require_files(path, ["config.json", "tokenizer.json", "tokenizer_config.json"])
        if not self.recognises(self.config()):
            expected = "/".join(self.model_types)
            raise UserError(f"{path / 'config.json'}: not of the family {self.name!r} (model_type {expected})")
        weight_files(path)
        missing = [token for token in self.needed_tokens() if not self._has(token)]
        if missing:
            raise UserError(f"{path / 'tokenizer.json'}: lacks {', '.join(missing)}: no checkpoint of {self.name!r}")

    @classmethod
    def needed_tokens(cls) -> tuple[str, ...]:
        """Tokens without which a checkpoint is not of this family."""
        return (cls.speech_token.format(cls.first_speech_token), cls.stop_token, *cls.markers)

    @classmethod
    def foreign_to(cls, folder: Path) -> str | None:
        added = _added_tokens(folder)
        missing = [token for token in cls.needed_tokens() if token not in added]
        return f"lacks {', '.join(missing)}" if missing else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.path)

    @cached_property
    def speech_ids(self) -> range:
        """See `SpeechFamily`.

        Raises:
            UserError: the speech tokens do not stand in one row.
        """
        pattern = re.compile(re.escape(self.speech_token).replace(re.escape("{}"), r"(\d+)"))
        named = {int(m[1]): i for token, i in self.tokenizer.get_vocab().items() if (m := pattern.fullmatch(token))}
        found = {number: i for number, i in named.items() if number >= self.first_speech_token}
        first = found[self.first_speech_token]
        for place in range(len(found)):
            number = self.first_speech_token + place
            if found.get(number) != first + place:
                name = self.speech_token.format(number)
                raise UserError(f"{self.path / 'tokenizer.json'}: {name} is not the token {first + place}")
        return range(first, first + len(found))

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (self._id(self.stop_token),)

    def load_language_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        model, report = AutoModelForCausalLM.from_pretrained(
            self.path, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        wrong = [*sorted(report["missing_keys"]), *(str(item[0]) for item in report["mismatched_keys"])]
        if wrong:
            raise UserError(f"{self.path}: missing weights, or weights of another shape: {', '.join(wrong[:5])}")
        rows = model.get_input_embeddings().num_embeddings
        needed = max(self.speech_ids.stop, len(self.tokenizer))
        if rows < needed:
            raise UserError(f"{self.path}: the model embeds {rows} tokens, its tokenizer has {needed}")
        # The checkpoint's own may hold sampling defaults that save_pretrained refuses; `export` copies its file.
        model.generation_config = GenerationConfig(eos_token_id=list(self.stop_token_ids))
        return model.eval()

    def write_engine_model(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.load_language_model(self._stored_dtype).save_pretrained(folder)
        copy_files(self.path, TOKENIZER_FILES, folder)

    def export(self, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor | LowRank]]) -> None:
        """See `LanguageModelFamily`. New weights are cast to the checkpoint's own dtype.

        Raises:
            UserError: the folder exists.
            ValueError: a part, a parameter name or a shape that the model does not have.
        """
        model = self.load_language_model(self._stored_dtype)
        own = dict(model.named_parameters())
        for part, tensors in states.items():
            if part != "language_model":
                raise ValueError(f"export: no part {part!r}, only language_model")
            for name, tensor in tensors.items():
                target = own.get(name)
                if target is None or target.shape != tensor.shape:
                    shape = None if target is None else tuple(target.shape)
                    raise ValueError(f"export: {name} has shape {tuple(tensor.shape)}, the model has {shape}")
                target.data.copy_(replaced(target.data, tensor))
        with new_folder(folder) as partial:
            model.save_pretrained(partial)
            copy_files(self.path, (*TOKENIZER_FILES, "generation_config.json"), partial)

    @property
    def _stored_dtype(self) -> torch.dtype:
        return read_tensors(self.path, "model.norm.")["weight"].dtype

    def text_ids(self, text: str, what: str = "text") -> list[int]:
        """Token ids of a text that is fit to be spoken.

        Args:
            what: how messages call it.

        Raises:
            InputError: it is empty, holds control tokens, an instruction, or characters that the model cannot read.
        """
        complaint = utf8_complaint(text)
        if complaint is not None:
            raise unusable(text, what, [complaint])
        if INSTRUCTION_END in text:
            raise unusable(
                text, what, [f"holds an instruction (before {INSTRUCTION_END}), which the model does not take"]
            )
        prepared = self.prepare_text(text)
        complaints = [f"cannot be read by the model: {named(c)}" for c in dict.fromkeys(prepared) if not self.reads(c)]
        ids: list[int] = [] if complaints else self.tokenizer.encode(prepared, add_special_tokens=False)
        if not complaints and not ids:
            complaints.append("is empty" if not text.strip() else f"leaves nothing to be spoken: {text.strip()!r}")
        complaints += self.control_complaints(prepared, ids)
        if complaints:
            raise unusable(text, what, complaints)
        return ids

    def prepare_text(self, text: str) -> str:
        """The text as the model was trained to read it."""
        return unicodedata.normalize("NFC", text.strip())

    def reads(self, character: str) -> bool:
        """Whether the tokenizer has ids for a character of a prepared text."""
        return character.isspace() or _has_ids(self.tokenizer, character)

    def _has(self, token: str) -> bool:
        identifier = self.tokenizer.convert_tokens_to_ids(token)
        return isinstance(identifier, int) and self.tokenizer.convert_ids_to_tokens(identifier) == token

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _added_tokens(folder: Path) -> set[str]:
    """Contents of a tokenizer's added tokens; none where the file is missing or damaged."""
    try:
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        return {str(token["content"]) for token in added}
    except (OSError, ValueError, LookupError, TypeError):
        return set()


@lru_cache(maxsize=65536)
def _has_ids(tokenizer: PreTrainedTokenizerBase, character: str) -> bool:
    ids: Sequence[int] = tokenizer.encode(character, add_special_tokens=False)
    return bool(ids) and (tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids)


def named(character: str) -> str:
    """A character with its code point and Unicode name, for messages: terminals do not show every script."""
    return f"{character!r} (U+{ord(character):04X} {unicodedata.name(character, 'no name')})"
