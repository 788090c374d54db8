"""The thinker of Qwen2.5-Omni (2503.20215), which hears and writes: windowed encoder, linear layer, Qwen2."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    Qwen2_5OmniConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2Config,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from speech.families.base import AudioEncoder
from speech.families.hearing.native import NativeFamily, too_long
from speech.families.hearing.windows import HOP, sound_frames
from speech.records import Utterance


class Qwen2_5OmniWindowedEncoder(AudioEncoder):  # noqa: N801 - the model's name
    """The audio tower without its last linear layer, which is the adaptor. It attends within chunks of 2 s."""

    def __init__(self, tower: Qwen2_5OmniAudioEncoder, extractor: WhisperFeatureExtractor) -> None:
        super().__init__()
        self.tower = tower
        self.tower.proj = nn.Identity()
        self.extractor = extractor

    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) at 16 kHz → log-mel (frames, mel bins), 100 frames a second.

        Raises:
            InputError: the recording is longer than the extractor's `chunk_length`.
        """
        longest = self.extractor.n_samples
        if len(wave) > longest:
            raise too_long(len(wave), longest / Qwen2_5OmniFamily.sample_rate)
        frames = sound_frames(len(wave))
        # The transform mirrors what is before the end of its input, where the processor's padding has silence.
        padded = np.pad(wave.astype(np.float32), (0, min((frames + 2) * HOP, longest) - len(wave)))
        mel = self.extractor(
            padded, sampling_rate=Qwen2_5OmniFamily.sample_rate, padding="do_not_pad", truncation=False
        )["input_features"][0]
        return torch.as_tensor(mel).T[:frames].contiguous()

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tower = self.tower
        weight = tower.conv1.weight
        lengths = torch.tensor([len(item) for item in features], device=weight.device)
        after_convolution, kept = tower._get_feat_extract_output_lengths(lengths)
        joined = torch.cat(list(features)).T.to(weight)
        states = tower(joined, feature_lens=lengths, aftercnn_lens=after_convolution).last_hidden_state
        return list(states.split(kept.tolist()))


class Qwen2_5OmniFamily(NativeFamily):  # noqa: N801 - the model's name
    """Qwen2.5-Omni's thinker, alone or inside the whole model, whose other parts an export leaves as they are.

    Its rotary embedding has three axes. For text and audio all three hold the same position, counted from 0, and it is
    then Qwen2's own; so learner and engine run a plain Qwen2.

    Args:
        path: checkpoint folder.
        instruction: what the user's turn says after the audio.

    Raises:
        UserError: a file is missing, or the checkpoint is not of this form.
    """

    name = "qwen2_5_omni"
    model_types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    text_types = ("qwen2_5_omni_text",)
    places = {
        "language_model": ("thinker.model.", "model."),
        "lm_head": ("thinker.lm_head.", "lm_head."),
        "adaptor": ("thinker.audio_tower.proj.", "audio_tower.proj."),
        "encoder": ("thinker.audio_tower.", "audio_tower."),
    }
    more_files = ("spk_dict.pt",)
    audio_token_key = "audio_token_index"
    stop_token = "<|im_end|>"

    def __init__(self, path: Path, instruction: str = "Transcribe the audio into text.") -> None:
        super().__init__(path)
        self.instruction = instruction

    def _read_config(self) -> Qwen2_5OmniThinkerConfig:
        if "thinker_config" in self.config():
            return Qwen2_5OmniConfig.from_pretrained(self.path).thinker_config
        return Qwen2_5OmniThinkerConfig.from_pretrained(self.path)

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(Qwen2_5OmniAudioEncoder, self.model_config.audio_config, dtype)
        return Qwen2_5OmniWindowedEncoder(tower, WhisperFeatureExtractor.from_pretrained(self.path)).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        config = self.model_config.audio_config
        return self._adaptor(partial(nn.Linear, config.d_model, config.output_dim), dtype)

    def _language_config(self) -> PreTrainedConfig:
        text = super()._language_config().to_dict()
        rope = {
            key: value for key, value in text.pop("rope_parameters").items() if key not in ("mrope_section", "type")
        }
        other = {"model_type", "architectures", "transformers_version"}
        return Qwen2Config(**{key: v for key, v in text.items() if key not in other}, rope_parameters=rope)

    def frames(self, samples: int) -> int:
        return sound_frames(samples)

    def audio_length(self, frames: int) -> int:
        """Two strides of 2, the first rounding up and the second down: 25 positions a second."""
        return ((frames - 1) // 2 + 1) // 2

    @cached_property
    def _template(self) -> str | None:
        """From where transformers 5 writes it, or from the older file; None for the tokenizer's own."""
        older = self.path / "chat_template.json"
        if (self.path / "chat_template.jinja").is_file() or not older.is_file():
            return None
        return str(json.loads(older.read_text(encoding="utf-8"))["chat_template"])

    def prompt_text(self, utterance: Utterance) -> str:
        content = [{"type": "audio"}, {"type": "text", "text": self.instruction}]
        return self._user_turn(self.tokenizer, content, self._template)
