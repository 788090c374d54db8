"""Qwen3-ASR in transformers' native form (`Qwen3ASRForConditionalGeneration`, the `-hf` checkpoints)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    Qwen3ForCausalLM,
)
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder, Qwen3ASRMultiModalProjector
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

from speech.errors import UserError
from speech.families.base import AudioEncoder, ModelFamily
from speech.families.checkpoint import copy_files, new_folder, read_tensors
from speech.records import PromptLayout, Utterance
from speech.runtime.checkpoint_files import require_files, weight_files
from speech.text import language_code

Model = TypeVar("Model", bound=PreTrainedModel)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
                   "special_tokens_map.json")  # fmt: skip
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "chat_template.json")

# Where the parts' own modules stand in the native class.
_PREFIXES = {"language_model": "model.language_model.", "adaptor": "model.multi_modal_projector.", "encoder": "model."}

_MARKER = "<asr_text>"


def _states(frames: int) -> int:
    """Encoder states of one chunk: three convolutions of stride 2 halve its frames, rounding up."""
    return -(-frames // 8)


class Qwen3ASRAudioEncoder(AudioEncoder):
    """The audio tower, fed one utterance's features at a time by its own feature extractor."""

    def __init__(self, tower: Qwen3ASREncoder, feature_extractor: Any) -> None:
        super().__init__()
        self.audio_tower = tower
        self.feature_extractor = feature_extractor

    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) at 16 kHz → log-mel (frames, mel bins), 100 frames a second, at least half a second."""
        extracted = self.feature_extractor(
            wave,
            sampling_rate=Qwen3ASRFamily.sample_rate,
            padding=True,
            n_window=0,  # `forward` pads to whole chunks, once it knows the batch
        )
        return extracted["input_features"][0].T.contiguous()

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `AudioEncoder`. Convolution and attention see whole chunks of one utterance only, and the padding of
        its last chunk is zeros whatever the batch; transformers' own batched processor pads the *waveform*, so that
        there an utterance's last states depend on its neighbours."""
        tower = self.audio_tower
        chunk = 2 * tower.config.n_window
        length = -(-max(len(item) for item in features) // chunk) * chunk
        weight = tower.conv2d1.weight
        batch = torch.stack([pad(item, (0, 0, 0, length - len(item))) for item in features]).mT
        frames = torch.tensor([len(item) for item in features], device=weight.device)
        mask = torch.arange(length, device=weight.device) < frames[:, None]
        states = tower(batch.to(weight), input_features_mask=mask.long()).last_hidden_state
        per_chunk = mask.view(len(features), -1, chunk).sum(-1)
        lengths = tower._post_cnn_length(per_chunk).sum(-1)
        return list(states.split(lengths.tolist()))


class Qwen3ASRFamily(ModelFamily):
    """Qwen3-ASR: windowed audio encoder, two-layer projector, Qwen3 language model.

    The response is `language English<asr_text>transcript<|im_end|>`.

    Args:
        path: checkpoint folder.
        force_language: put `language English<asr_text>` into the prompt, so that the response is the transcript
            alone: `True` wherever the utterance's language is known, a code such as `en` for every utterance.
            Otherwise the model names the language itself.

    Raises:
        UserError: a file is missing, the checkpoint is not of this form, or the model does not know the language.
    """

    name = "qwen3_asr"
    sample_rate = 16_000
    model_types = ("qwen3_asr",)

    def __init__(self, path: Path, force_language: bool | str = False) -> None:
        super().__init__(path)
        if not isinstance(force_language, bool) and str(force_language) not in LANGUAGE_CODE_TO_NAME:
            known = ", ".join(sorted(LANGUAGE_CODE_TO_NAME))
            raise UserError(f"force_language is {force_language!r}; give true, false or one of {known}")
        self.force_language = force_language
        require_files(path, ["config.json", "tokenizer_config.json"])
        if not (path / "tokenizer.json").is_file():
            require_files(path, ["vocab.json", "merges.txt"])
        if not (path / "preprocessor_config.json").is_file():
            require_files(path, ["processor_config.json"])
        raw = self.config()
        if "thinker_config" in raw:
            raise UserError(
                f"{path / 'config.json'}: this is Qwen3-ASR's original form; use the checkpoint whose name ends in "
                "-hf, or convert it with transformers' convert_qwen3_asr_to_hf.py"
            )
        if raw.get("model_type") not in self.model_types:
            raise UserError(f"{path / 'config.json'}: model_type is {raw.get('model_type')!r}, not 'qwen3_asr'")
        weight_files(path)
        self.model_config = Qwen3ASRConfig.from_pretrained(path)
        if self.model_config.text_config.model_type != "qwen3":
            raise UserError(
                f"{path / 'config.json'}: text_config.model_type is {self.model_config.text_config.model_type!r}, "
                "only 'qwen3' is known"
            )
        self._prompts: dict[str, tuple[list[int], list[int]]] = {}

    @cached_property
    def processor(self) -> Qwen3ASRProcessor:
        processor = Qwen3ASRProcessor.from_pretrained(self.path)
        if processor.chat_template is None:
            raise UserError(f"model folder {self.path} lacks chat_template.jinja")
        if processor.audio_token_id != self.model_config.audio_token_id:
            raise UserError(
                f"{self.path}: audio_token_id is {self.model_config.audio_token_id} in config.json but "
                f"{processor.audio_token_id} in the tokenizer"
            )
        return processor

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """`<|im_end|>`, which training teaches, then whatever else the checkpoint declares as an end."""
        declared = self.model_config.eos_token_id
        if (self.path / "generation_config.json").is_file():
            declared = GenerationConfig.from_pretrained(self.path).eos_token_id or declared
        others = [declared] if isinstance(declared, int) else declared or ()
        return tuple(dict.fromkeys([self._id("<|im_end|>"), *others]))

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tensors = read_tensors(self.path, "model.audio_tower.")
        tower = self._assemble(Qwen3ASREncoder, self.model_config.audio_config, tensors, dtype)
        return Qwen3ASRAudioEncoder(tower, self.processor.feature_extractor).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.device("meta"):
            adaptor = Qwen3ASRMultiModalProjector(self.model_config)
        tensors = read_tensors(self.path, "model.multi_modal_projector.")
        missing, unexpected = adaptor.load_state_dict(tensors, strict=False, assign=True)
        self._complain("multi_modal_projector", missing, unexpected)
        return adaptor.to(dtype).eval()

    def load_language_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        tensors = read_tensors(self.path, "model.language_model.")
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        config = type(self.model_config.text_config).from_dict(self.model_config.text_config.to_dict())
        # The native class ties by the outer configuration; the inner one is only what happens to be stored with it.
        config.tie_word_embeddings = self.model_config.tie_word_embeddings
        config.eos_token_id = list(self.stop_token_ids)
        config.pad_token_id = self.model_config.pad_token_id
        if not config.tie_word_embeddings:
            tensors |= {f"lm_head.{name}": tensor for name, tensor in read_tensors(self.path, "lm_head.").items()}
        return self._assemble(Qwen3ForCausalLM, config, tensors, dtype)

    def frames(self, samples: int) -> int:
        return max(50, samples // 160)

    def audio_length(self, frames: int) -> int:
        whole, rest = divmod(frames, 2 * self.model_config.audio_config.n_window)
        return whole * _states(2 * self.model_config.audio_config.n_window) + _states(rest)

    def layout(self, utterance: Utterance, audio_length: int) -> PromptLayout:
        before, after = self._prompt(self._forced(utterance))
        audio = [self.model_config.audio_token_id] * audio_length
        return PromptLayout((*before, *audio, *after), len(before), audio_length)

    def target_ids(self, utterance: Utterance) -> list[int]:
        # "None" is the word the model was trained with where the language is not known.
        claim = "" if self._forced(utterance) else f"language {self._language(utterance)}{_MARKER}"
        before: list[int] = self.tokenizer.encode(claim, add_special_tokens=False)
        return [*before, *self.text_ids(utterance.text), self._id("<|im_end|>")]

    def parse_output(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        """See `ModelFamily`. Unlike transformers' parser this leaves repetitions in: a reward must see a loop."""
        marker = self._id(_MARKER)
        ids = list(token_ids)
        if marker not in ids:
            return self._text(ids), None
        at = ids.index(marker)
        claim = self._text(ids[:at]).partition("\n")[0].removeprefix("language ").strip()
        transcript = self._text([token for token in ids[at:] if token != marker])
        return transcript, None if claim.lower() in ("", "none", "language") else language_code(claim)

    def write_engine_model(self, folder: Path) -> None:
        stored = read_tensors(self.path, "model.language_model.norm.")["weight"].dtype
        model = self.load_language_model(stored)
        model.generation_config = GenerationConfig(
            eos_token_id=list(self.stop_token_ids), pad_token_id=self.model_config.pad_token_id
        )
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        copy_files(self.path, TOKENIZER_FILES, folder)

    def export(self, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """See `ModelFamily`. New weights are cast to the checkpoint's own dtype.

        Raises:
            UserError: the folder exists.
            ValueError: a part, a parameter name or a shape that the model does not have.
        """
        model = Qwen3ASRForConditionalGeneration.from_pretrained(self.path, dtype="auto")
        own = model.state_dict()
        for part, tensors in states.items():
            if part not in _PREFIXES:
                raise ValueError(f"export: no part {part!r}, only {', '.join(_PREFIXES)}")
            for name, tensor in tensors.items():
                # The native class keeps the LM's body in model.language_model and its head at the top.
                inner = name.removeprefix("model.")
                target = own.get(name if name.startswith("lm_head.") else _PREFIXES[part] + inner)
                if target is None or target.shape != tensor.shape:
                    shape = None if target is None else tuple(target.shape)
                    raise ValueError(f"export: {part} {name} has shape {tuple(tensor.shape)}, the model has {shape}")
                target.copy_(tensor)
        with new_folder(folder) as partial:
            model.save_pretrained(partial)
            copy_files(self.path, TOKENIZER_FILES + PROCESSOR_FILES, partial)

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

    def _forced(self, utterance: Utterance) -> str:
        """What the prompt says of the response: `language English<asr_text>`, or nothing."""
        name = self._language(utterance)
        return f"language {name}{_MARKER}" if self.force_language and name else ""

    def _language(self, utterance: Utterance) -> str | None:
        """The name by which the model knows the utterance's language, or the one that is forced on all."""
        code = self.force_language if isinstance(self.force_language, str) else utterance.language
        return LANGUAGE_CODE_TO_NAME.get(code or "")

    def _prompt(self, prefill: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the audio positions, as the checkpoint's own chat template builds them."""
        if prefill not in self._prompts:
            messages = [
                {"role": "user", "content": [{"type": "audio"}]},
                {"role": "assistant", "content": [{"type": "text", "text": prefill}]},
            ]
            text = self.processor.apply_chat_template(messages, tokenize=False, continue_final_message=True)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            places = [i for i, token in enumerate(ids) if token == self.model_config.audio_token_id]
            if len(places) != 1:
                raise UserError(f"{self.path}: the chat template gives {len(places)} places for one audio")
            self._prompts[prefill] = ids[: places[0]], ids[places[0] + 1 :]
        return self._prompts[prefill]

    def _id(self, token: str) -> int:
        identifier = self.tokenizer.convert_tokens_to_ids(token)
        if self.tokenizer.convert_ids_to_tokens(identifier) != token:
            raise UserError(f"{self.path}: the tokenizer lacks the token {token}")
        return identifier

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
