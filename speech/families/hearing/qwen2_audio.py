"""Qwen2-Audio (2407.10759): Whisper's encoder with its states averaged in pairs, one linear layer, Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2AudioEncoder, Qwen2AudioProcessor
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioMultiModalProjector

from speech.families.base import AudioEncoder
from speech.families.hearing.native import NESTED_PLACES, NativeFamily
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
    places = NESTED_PLACES
    audio_token_key = "audio_token_index"
    stop_token = "<|im_end|>"

    def __init__(self, path: Path, instruction: str = "Transcribe the speech.") -> None:
        super().__init__(path)
        self.instruction = instruction

    @cached_property
    def processor(self) -> Qwen2AudioProcessor:
        return self._checked(Qwen2AudioProcessor.from_pretrained(self.path))

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(Qwen2AudioEncoder, self.model_config.audio_config, dtype)
        return Qwen2AudioWindowEncoder(tower, self.processor.feature_extractor).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self._adaptor(partial(Qwen2AudioMultiModalProjector, self.model_config), dtype)

    def frames(self, samples: int) -> int:
        return sound_frames(samples) + SILENCE

    def audio_length(self, frames: int) -> int:
        """Two strides of 2, the first rounding up and the second down: 25 positions a second."""
        return ((frames - SILENCE - 1) // 2 + 1) // 2

    def prompt_text(self, utterance: Utterance) -> str:
        return self._user_turn(self.processor, [{"type": "audio"}, {"type": "text", "text": self.instruction}])
