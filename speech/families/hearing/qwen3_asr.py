"""Qwen3-ASR in transformers' native form (`Qwen3ASRForConditionalGeneration`, checkpoints ending in `-hf`) and in its
original one, whose names and configuration are those of Qwen3-Omni's thinker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3ASRConfig,
    Qwen3ASREncoderConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRProcessor,
    Qwen3Config,
)
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder, Qwen3ASRMultiModalProjector
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

from speech.errors import UserError
from speech.families.base import AudioEncoder
from speech.families.hearing.native import NativeFamily
from speech.records import Utterance
from speech.text import language_code

_MARKER = "<asr_text>"

_ORIGINAL_AUDIO = {"num_mel_bins": 128, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
                   "d_model": 1280, "n_window": 100, "output_dim": 3584, "n_window_infer": 400,
                   "downsample_hidden_size": 480}  # fmt: skip
_ORIGINAL_TEXT = {"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
                  "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "rms_norm_eps": 1e-6,
                  "max_position_embeddings": 128_000, "rope_theta": 5e6, "tie_word_embeddings": False}  # fmt: skip
"""What the original configuration classes take for a key that `config.json` leaves out (as vLLM has them)."""


def _states(frames: int) -> int:
    """Encoder states of one chunk: three convolutions of stride 2 halve its frames, rounding up."""
    return -(-frames // 8)


def _known(given: dict[str, Any] | None, kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """What a configuration class has a field for."""
    fields = kind().to_dict().keys() - {"model_type", "transformers_version", "rope_parameters", "layer_types"}
    return {key: value for key, value in (given or {}).items() if key in fields}


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


class Qwen3ASRFamily(NativeFamily):
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
    languages = frozenset(map(language_code, LANGUAGE_CODE_TO_NAME))
    model_types = ("qwen3_asr",)
    text_types = ("qwen3",)
    ties = True
    stop_token = "<|im_end|>"
    own_names = {"language_model": "model.", "adaptor": "linear_", "encoder": "audio_tower."}
    places = {
        "language_model": ("model.language_model.", "thinker.model."),
        "lm_head": ("lm_head.", "thinker.lm_head."),
        "adaptor": ("model.multi_modal_projector.linear_", "thinker.audio_tower.proj"),
        "encoder": ("model.audio_tower.", "thinker.audio_tower."),
    }

    def __init__(self, path: Path, force_language: bool | str = False) -> None:
        if not isinstance(force_language, bool) and str(force_language) not in LANGUAGE_CODE_TO_NAME:
            known = ", ".join(sorted(LANGUAGE_CODE_TO_NAME))
            raise UserError(f"force_language is {force_language!r}; give true, false or one of {known}")
        self.force_language = force_language
        super().__init__(path)

    @property
    def _is_original(self) -> bool:
        return "thinker_config" in self.config()

    def _read_config(self) -> Qwen3ASRConfig:
        if not self._is_original:
            return Qwen3ASRConfig.from_pretrained(self.path)
        thinker = self.config()["thinker_config"]
        audio = _ORIGINAL_AUDIO | _known(thinker.get("audio_config"), Qwen3ASREncoderConfig)
        text = _ORIGINAL_TEXT | (thinker.get("text_config") or {})
        rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise UserError(f"{self.path / 'config.json'}: only the default rotary embedding is known, not {rope}")
        theta = rope.get("rope_theta", text["rope_theta"])
        # Its three axes hold one count where there is no picture: it is then the plain embedding.
        text = _known(text, Qwen3Config) | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        return Qwen3ASRConfig(
            audio_config=audio | {"max_position_embeddings": _states(2 * audio["n_window"])},
            text_config=text,
            audio_token_id=thinker.get("audio_token_id", 151_646),
            tie_word_embeddings=text["tie_word_embeddings"],
        )

    @cached_property
    def processor(self) -> Qwen3ASRProcessor:
        processor = self._original_processor() if self._is_original else Qwen3ASRProcessor.from_pretrained(self.path)
        if processor.chat_template is None:
            raise UserError(f"model folder {self.path} lacks chat_template.jinja")
        return self._checked(processor)

    def _original_processor(self) -> Qwen3ASRProcessor:
        """The native one around the original's tokenizer and template, whose marks of audio have these names."""
        marks = {
            "audio_token": "<|audio_pad|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        }
        tokenizer = AutoTokenizer.from_pretrained(self.path, **marks)
        extractor = Qwen3ASRFeatureExtractor(feature_size=self.model_config.audio_config.num_mel_bins)
        template, file = tokenizer.chat_template, self.path / "chat_template.json"
        if file.is_file():
            template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        return Qwen3ASRProcessor(extractor, tokenizer, chat_template=template)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def _pad_token(self) -> int | None:
        return self.tokenizer.pad_token_id if self._is_original else self.model_config.pad_token_id

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(Qwen3ASREncoder, self.model_config.audio_config, dtype, without=("proj",))
        return Qwen3ASRAudioEncoder(tower, self.processor.feature_extractor).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self._adaptor(partial(Qwen3ASRMultiModalProjector, self.model_config), dtype, prefix="linear_")

    def frames(self, samples: int) -> int:
        return max(50, samples // 160)

    def audio_length(self, frames: int) -> int:
        whole, rest = divmod(frames, 2 * self.model_config.audio_config.n_window)
        return whole * _states(2 * self.model_config.audio_config.n_window) + _states(rest)

    def prompt_text(self, utterance: Utterance) -> str:
        messages = [
            {"role": "user", "content": [{"type": "audio"}]},
            {"role": "assistant", "content": [{"type": "text", "text": self._forced(utterance)}]},
        ]
        text: str = self.processor.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        return text

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

    def _forced(self, utterance: Utterance) -> str:
        """What the prompt says of the response: `language English<asr_text>`, or nothing."""
        name = self._language(utterance)
        return f"language {name}{_MARKER}" if self.force_language and name else ""

    def _language(self, utterance: Utterance) -> str | None:
        """The name by which the model knows the utterance's language, or the one that is forced on all."""
        code = self.force_language if isinstance(self.force_language, str) else utterance.language
        return LANGUAGE_CODE_TO_NAME.get(code or "")
