"""The embedded demo family: a small speech LM trained by our own recipe (`assets/build`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from speech.errors import UserError
from speech.families.base import AudioEncoder, ModelFamily
from speech.families.checkpoint import LowRank, read_tensors, replaced
from speech.families.demo.demo_model import (
    HOP,
    SAMPLE_RATE,
    WINDOW,
    DemoAdaptor,
    DemoEncoder,
    DemoSpeechConfig,
    DemoSpeechLM,
)
from speech.records import PromptLayout, Utterance
from speech.runtime.checkpoint_files import require_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
PARTS = {"language_model": "language_model.", "adaptor": "adaptor.", "encoder": "encoder.", "ctc": "ctc."}


class _Encoder(DemoEncoder, AudioEncoder):
    """`DemoEncoder` under our interface (its file may not import this project)."""


class DemoFamily(ModelFamily):
    name = "demo"
    sample_rate = SAMPLE_RATE
    model_types = ("speechrl_demo",)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        require_files(path, ["config.json", "model.safetensors", *TOKENIZER_FILES])
        if self.config().get("model_type") not in self.model_types:
            raise UserError(f"{path / 'config.json'}: model_type is not {self.model_types[0]!r}")
        self.model_config = DemoSpeechConfig.from_pretrained(path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return PreTrainedTokenizerFast.from_pretrained(self.path)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (self._id("<|endoftext|>"),)

    def _id(self, token: str) -> int:
        identifier = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(identifier, int) or identifier == self.tokenizer.unk_token_id:
            raise UserError(f"{self.path / 'tokenizer.json'}: lacks the token {token}")
        return identifier

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        encoder = _Encoder(self.model_config)
        self._load(encoder, "encoder")
        return encoder.to(dtype).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        adaptor = DemoAdaptor(self.model_config)
        self._load(adaptor, "adaptor")
        return adaptor.to(dtype).eval()

    def load_language_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        model = DemoSpeechLM(self.model_config).language_model
        self._load(model, "language_model")
        model.tie_weights()
        return model.to(dtype).eval()

    def ctc_head(self) -> nn.Module:
        head = nn.Linear(self.model_config.encoder_dim, self.model_config.text_config.vocab_size)
        self._load(head, "ctc")
        return head

    def _load(self, module: nn.Module, part: str) -> None:
        missing, unexpected = module.load_state_dict(read_tensors(self.path, PARTS[part]), strict=False)
        # A tied lm_head is not stored; everything else must be there.
        missing = [name for name in missing if name != "lm_head.weight"]
        if missing or unexpected:
            raise UserError(f"{self.path / 'model.safetensors'}: {part}: missing {missing}, unexpected {unexpected}")

    def frames(self, samples: int) -> int:
        return 1 + max(samples, WINDOW) // HOP

    def audio_length(self, frames: int) -> int:
        states = ((frames - 1) // 2 + 1 - 1) // 2 + 1
        return -(-states // self.model_config.adaptor_stack)

    def layout(self, utterance: Utterance, audio_length: int) -> PromptLayout:
        audio = self.model_config.audio_token_id
        before = [self._id("<|audio_start|>")]
        after = [self._id("<|audio_end|>"), self._id("<|transcribe|>")]
        return PromptLayout(tuple(before + [audio] * audio_length + after), len(before), audio_length)

    def target_ids(self, utterance: Utterance) -> list[int]:
        return [*self.text_ids(utterance.text), *self.stop_token_ids]

    def ctc_ids(self, utterance: Utterance) -> list[int]:
        """The transcript spelled in the tokenizer's bytes: an encoder learns to align them sooner than subwords."""
        pieces = self.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(utterance.text)
        return self.tokenizer.convert_tokens_to_ids([symbol for piece, _ in pieces for symbol in piece])

    def parse_output(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip(), None

    def write_engine_model(self, folder: Path) -> None:
        self.load_language_model().save_pretrained(folder)
        self._copy_tokenizer(folder)

    def export(self, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor | LowRank]]) -> None:
        model = DemoSpeechLM(self.model_config)
        for part, prefix in PARTS.items():
            module = model.get_submodule(prefix[:-1])
            self._load(module, part)
            if part in states:
                old = module.state_dict()
                unknown = states[part].keys() - old.keys()
                if unknown:
                    raise ValueError(f"export of {part}: unknown parameters {sorted(unknown)}")
                new = {name: replaced(old[name], item) for name, item in states[part].items()}
                module.load_state_dict(new, strict=False)
        save_demo_model(model, folder)
        self._copy_tokenizer(folder)

    def _copy_tokenizer(self, folder: Path) -> None:
        for name in TOKENIZER_FILES:
            shutil.copyfile(self.path / name, folder / name)


def save_demo_model(model: DemoSpeechLM, folder: Path) -> None:
    """`save_pretrained` with the model's source beside the weights, so that plain transformers can load it."""
    DemoSpeechConfig.register_for_auto_class()
    DemoSpeechLM.register_for_auto_class("AutoModel")
    model.save_pretrained(folder)
