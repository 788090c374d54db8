"""What families share whose checkpoint is one class of transformers: audio tower, adaptor, causal language model."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from speech.errors import InputError, Problem, UserError
from speech.families.base import ModelFamily
from speech.families.checkpoint import LowRank, copy_files, new_folder, read_tensors, rewrite_weights, tensor_names
from speech.records import PromptLayout, Utterance
from speech.runtime.checkpoint_files import require_files, weight_files

Model = TypeVar("Model", bound=PreTrainedModel)
Processor = TypeVar("Processor", bound=Any)

NESTED_PLACES: Mapping[str, Sequence[str]] = {
    "language_model": ("language_model.model.model.", "language_model.model.", "model.language_model."),
    "lm_head": ("language_model.lm_head.", "lm_head."),
    "adaptor": ("multi_modal_projector.", "model.multi_modal_projector."),
    "encoder": ("audio_tower.", "model.audio_tower."),
}
"""`places` of checkpoints that hold a whole causal language model: the hub's names, and later ones of transformers."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "chat_template.json")


class NativeFamily(ModelFamily):
    """Reads and writes the parts of a checkpoint under the names that the hub has for them.

    An export rewrites the checkpoint's own files: names, types and parts that are none of ours stay.

    Attributes:
        places: for each part and for `lm_head`, what may stand before the names of its tensors in the checkpoint. The
            first of which there is a tensor counts: transformers has renamed some parts over time.
        own_names: what the modules of `load_…` put before these names.
        text_types: values of `text_config.model_type` that are known to fit; empty for any.
        tokenizer_files: the tokenizer's, of those that a checkpoint may have.
        more_files: others that an export takes over as they are.
        ties: the native class shares the head with the embeddings wherever its configuration says so.
        audio_token_key: of the configuration: the id that stands in the prompt where audio is.
        stop_token: what training teaches a response to end with; None for the first that the checkpoint declares.
    """

    places: ClassVar[Mapping[str, Sequence[str]]]
    own_names: ClassVar[Mapping[str, str]] = {"language_model": "model.", "adaptor": "", "encoder": "tower."}
    text_types: ClassVar[tuple[str, ...]]
    tokenizer_files: ClassVar[Sequence[str]] = (
        "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
        "special_tokens_map.json",
    )  # fmt: skip
    more_files: ClassVar[Sequence[str]] = ()
    ties: ClassVar[bool] = False
    audio_token_key: ClassVar[str] = "audio_token_id"
    stop_token: ClassVar[str | None] = None
    sample_rate: ClassVar[int] = 16_000
    model_config: Any

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._check_files()
        kind = self.config().get("model_type")
        if kind not in self.model_types:
            raise UserError(
                f"{path / 'config.json'}: model_type is {kind!r}, not {' or '.join(map(repr, self.model_types))}"
            )
        self.model_config = self._read_config()
        weight_files(path)
        if self.text_types and self.text_config.model_type not in self.text_types:
            known = " and ".join(map(repr, self.text_types))
            raise UserError(
                f"{path / 'config.json'}: text_config.model_type is {self.text_config.model_type!r}, only {known} "
                f"{'is' if len(self.text_types) == 1 else 'are'} known"
            )
        # A token whose embedding is never looked at may be one that there is no embedding of.
        fits = self.audio_token < self.text_config.vocab_size
        self._placeholder = self.audio_token if fits else 0
        self._prompts: dict[str, tuple[list[int], list[int]]] = {}

    def _check_files(self) -> None:
        require_files(self.path, ["config.json", "tokenizer_config.json"])
        if not (self.path / "tokenizer.json").is_file():
            require_files(self.path, ["vocab.json", "merges.txt"])
        if not (self.path / "preprocessor_config.json").is_file():
            require_files(self.path, ["processor_config.json"])

    def _read_config(self) -> PreTrainedConfig:
        config: PreTrainedConfig = AutoConfig.from_pretrained(self.path)
        return config

    @property
    def text_config(self) -> Any:
        return self.model_config.text_config

    @property
    def audio_token(self) -> int:
        """Id that stands in the prompt where audio is."""
        return int(getattr(self.model_config, self.audio_token_key))

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stops(self.stop_token)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.path)

    # Weights.

    @cached_property
    def _stored(self) -> dict[str, Path]:
        return tensor_names(self.path)

    def _place(self, part: str) -> str:
        for prefix in self.places[part]:
            if any(name.startswith(prefix) for name in self._stored):
                return prefix
        raise UserError(f"model folder {self.path}: no weights named {' or '.join(f'{p}*' for p in self.places[part])}")

    @property
    def _tied(self) -> bool:
        return self.ties and bool(getattr(self.model_config, "tie_word_embeddings", False))

    def stored_name(self, part: str, name: str) -> str:
        """Parameter name of a part's module → name of the tensor in the checkpoint."""
        if part == "language_model" and name.startswith("lm_head."):
            return self._place("lm_head") + name.removeprefix("lm_head.")
        return self._place(part) + name.removeprefix(self.own_names[part])

    def load_language_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        config = self._language_config()
        return self._assemble(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, self._language_tensors(), dtype)

    def _language_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": t for name, t in read_tensors(self.path, self._place("language_model")).items()}
        if not self._tied:
            head = read_tensors(self.path, self._place("lm_head"))
            tensors |= {f"lm_head.{name}": tensor for name, tensor in head.items()}
        return tensors

    def _language_config(self) -> PreTrainedConfig:
        config: PreTrainedConfig = copy.deepcopy(self.text_config)
        # The native class ties by the outer configuration; the inner one is only what happens to be stored with it.
        config.tie_word_embeddings = self._tied
        config.eos_token_id = list(self.stop_token_ids)
        config.pad_token_id = self._pad_token
        return config

    @property
    def _pad_token(self) -> int | None:
        return self.tokenizer.pad_token_id

    def _load_tower(
        self, kind: type[Model], config: PreTrainedConfig, dtype: torch.dtype, without: tuple[str, ...] = ()
    ) -> Model:
        """The audio tower; `without` the tensors under its name that are another part's."""
        tensors = read_tensors(self.path, self._place("encoder"))
        return self._assemble(kind, config, {n: t for n, t in tensors.items() if not n.startswith(without)}, dtype)

    def _fill(self, module: nn.Module, part: str, dtype: torch.dtype, prefix: str = "") -> nn.Module:
        """The part's weights in a module that may be on the meta device, `prefix` before their names."""
        tensors = {prefix + name: tensor for name, tensor in read_tensors(self.path, self._place(part)).items()}
        missing, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
        self._complain(f"the {part}", missing, unexpected)
        return module.to(dtype).eval()

    def _adaptor(self, build: Callable[[], nn.Module], dtype: torch.dtype, prefix: str = "") -> nn.Module:
        """The adaptor, without weights of its own before those of the checkpoint; `prefix`: see `_fill`."""
        with torch.device("meta"):
            adaptor = build()
        return self._fill(adaptor, "adaptor", dtype, prefix)

    def _assemble(self, kind: type[Model], config: Any, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> Model:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
        wrong = [str(item[0]) for item in report["mismatched_keys"]]
        self._complain(kind.__name__, sorted(report["missing_keys"]), [*sorted(report["unexpected_keys"]), *wrong])
        return model.eval()

    def _complain(self, part: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
        if missing or unexpected:
            raise UserError(
                f"{self.path}: the weights of {part} do not fit its configuration: missing {list(missing)[:5]}, "
                f"unexpected or of another shape {list(unexpected)[:5]}"
            )

    def write_engine_model(self, folder: Path) -> None:
        stored = read_tensors(self.path, self._place("language_model") + "norm.")["weight"].dtype
        model = self.load_language_model(stored)
        model.generation_config = GenerationConfig(eos_token_id=list(self.stop_token_ids), pad_token_id=self._pad_token)
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        copy_files(self.path, self.tokenizer_files, folder)

    def export(self, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor | LowRank]]) -> None:
        """See `ModelFamily`. New weights are cast to the checkpoint's own dtype.

        Raises:
            UserError: the folder exists.
            ValueError: a part, a parameter name or a shape that the model does not have.
        """
        new: dict[str, torch.Tensor | LowRank] = {}
        for part, tensors in states.items():
            if part not in self.places or part == "lm_head":
                raise ValueError(
                    f"export: no part {part!r}, only {', '.join(p for p in self.places if p != 'lm_head')}"
                )
            for name, tensor in tensors.items():
                stored = self.stored_name(part, name)
                shape = self._shape(stored)
                if shape != tuple(tensor.shape):
                    raise ValueError(f"export: {part} {name} has shape {tuple(tensor.shape)}, the model has {shape}")
                new[stored] = tensor
        with new_folder(folder) as partial:
            self._write(partial, new)

    def _write(self, folder: Path, new: Mapping[str, torch.Tensor | LowRank]) -> None:
        rewrite_weights(self.path, folder, new)
        kept = ("config.json", "generation_config.json", *PROCESSOR_FILES, *self.tokenizer_files, *self.more_files)
        copy_files(self.path, kept, folder)

    def _shape(self, stored: str) -> tuple[int, ...] | None:
        if stored not in self._stored:
            return None
        with safe_open(self._stored[stored], framework="pt") as file:
            return tuple(file.get_slice(stored).get_shape())

    # Tokens.

    def _stops(self, first: str | None = None) -> tuple[int, ...]:
        """The token that training teaches, then whatever else the checkpoint declares as an end.

        Raises:
            UserError: the tokenizer lacks the token, or none is named and the checkpoint declares none.
        """
        declared = getattr(self.model_config, "eos_token_id", None) or getattr(self.text_config, "eos_token_id", None)
        if (self.path / "generation_config.json").is_file():
            declared = GenerationConfig.from_pretrained(self.path).eos_token_id or declared
        others = [declared] if isinstance(declared, int) else list(declared or ())
        stops = tuple(dict.fromkeys(others if first is None else [self._id(first), *others]))
        if not stops:
            raise UserError(f"{self.path / 'config.json'}: declares no eos_token_id")
        return stops

    @abstractmethod
    def prompt_text(self, utterance: Utterance) -> str:
        """The prompt up to the response, with the audio token once, as the checkpoint's own template builds it."""

    def _user_turn(self, builder: Any, content: Any, template: str | None = None) -> str:
        """What a processor or tokenizer makes of one turn of the user, up to the response.

        Args:
            template: in the place of the builder's own.

        Raises:
            UserError: there is no template.
        """
        if template is None and builder.chat_template is None:
            raise UserError(f"model folder {self.path} lacks chat_template.jinja")
        text: str = builder.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        return text

    def _checked(self, processor: Processor) -> Processor:
        """The processor.

        Raises:
            UserError: configuration and tokenizer do not agree on the token of audio.
        """
        if processor.audio_token_id != self.audio_token:
            raise UserError(
                f"{self.path}: {self.audio_token_key} is {self.audio_token} in config.json but "
                f"{processor.audio_token_id} in the tokenizer"
            )
        return processor

    def layout(self, utterance: Utterance, audio_length: int) -> PromptLayout:
        text = self.prompt_text(utterance)
        if text not in self._prompts:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            places = [i for i, token in enumerate(ids) if token == self.audio_token]
            if len(places) != 1:
                raise UserError(f"{self.path}: the chat template gives {len(places)} places for one audio")
            self._prompts[text] = ids[: places[0]], ids[places[0] + 1 :]
        before, after = self._prompts[text]
        return PromptLayout((*before, *[self._placeholder] * audio_length, *after), len(before), audio_length)

    def target_ids(self, utterance: Utterance) -> list[int]:
        return [*self.text_ids(utterance.text), self.stop_token_ids[0]]

    def parse_output(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        return self._text(token_ids), None

    def _id(self, token: str) -> int:
        identifier = self.tokenizer.convert_tokens_to_ids(token)
        if self.tokenizer.convert_ids_to_tokens(identifier) != token:
            raise UserError(f"{self.path}: the tokenizer lacks the token {token}")
        return int(identifier)

    def _text(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def too_long(samples: int, seconds: float) -> InputError:
    """The error of a recording that is longer than a model can hear: cutting it would teach half a transcript."""
    said = f"lasts {samples / NativeFamily.sample_rate:.1f} s, and the model hears {seconds:g} s at most"
    return InputError("audio that the model cannot hear whole", [Problem("audio", None, None, said)])
