"""Qwen2-Audio (2407.10759): Whisper's encoder with its states averaged in pairs, one linear layer, Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2AudioEncoder, Qwen2AudioProcessor
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioMultiModalProjector

from speech.errors import UserError
from speech.families.base import AudioEncoder
from speech.families.hearing.native import NativeFamily
from speech.families.hearing.windows import SILENCE, WindowEncoder, sound_frames
from speech.records import Utterance


class Qwen2AudioWindowEncoder(WindowEncoder):
    """The tower hears a window of 30 s; padding is hidden from its attention, and its states are dropped."""

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tower = self.tower
        weight = tower.conv1.weight
        windows, frames = zip(*(self.as_windows(item) for item in features), strict=True)
        batch = torch.cat(windows).to(weight)
        heard, kept = tower._get_feat_extract_output_lengths(torch.tensor(frames, device=weight.device))
        places = torch.arange(tower.config.max_source_positions, device=weight.device)
        mask = create_bidirectional_mask(
            config=tower.config,
            inputs_embeds=weight.new_zeros(len(batch), len(places), 1),
            attention_mask=(places < heard[:, None]).long(),
        )
        states = tower(batch, attention_mask=mask).last_hidden_state
        return [row[:length] for row, length in zip(states, kept.tolist(), strict=True)]


class Qwen2AudioFamily(NativeFamily):
    """Qwen2-Audio and Qwen2-Audio-Instruct in their chat form. The response is the transcript and `<|im_end|>`.

    Args:
        path: checkpoint folder.
        instruction: what the user's turn says after the audio.

    Raises:
        UserError: a file is missing, or the checkpoint is not of this form.
    """

    name = "qwen2_audio"
    model_types = ("qwen2_audio",)
    text_types = ("qwen2",)
    places = {
        "language_model": ("language_model.model.model.", "language_model.model.", "model.language_model."),
        "lm_head": ("language_model.lm_head.", "lm_head."),
        "adaptor": ("multi_modal_projector.", "model.multi_modal_projector."),
        "encoder": ("audio_tower.", "model.audio_tower."),
    }

    def __init__(self, path: Path, instruction: str = "Transcribe the speech.") -> None:
        super().__init__(path)
        self.instruction = instruction

    @cached_property
    def processor(self) -> Qwen2AudioProcessor:
        processor = Qwen2AudioProcessor.from_pretrained(self.path)
        if processor.audio_token_id != self.audio_token:
            raise UserError(
                f"{self.path}: audio_token_index is {self.audio_token} in config.json but {processor.audio_token_id} "
                "in the tokenizer"
            )
        return processor

    @property
    def audio_token(self) -> int:
        return int(self.model_config.audio_token_index)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stops("<|im_end|>")

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(Qwen2AudioEncoder, self.model_config.audio_config, dtype)
        return Qwen2AudioWindowEncoder(tower, self.processor.feature_extractor).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.device("meta"):
            adaptor = Qwen2AudioMultiModalProjector(self.model_config)
        return self._fill(adaptor, "adaptor", dtype)

    def frames(self, samples: int) -> int:
        return sound_frames(samples) + SILENCE

    def audio_length(self, frames: int) -> int:
        """Two strides of 2, the first rounding up and the second down: 25 positions a second."""
        return ((frames - SILENCE - 1) // 2 + 1) // 2

    def prompt_text(self, utterance: Utterance) -> str:
        content = [{"type": "audio"}, {"type": "text", "text": self.instruction}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return text
