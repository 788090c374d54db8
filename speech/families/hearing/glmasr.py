"""GLM-ASR: Whisper's encoder with rotary positions, four states a position, two linear layers, Llama."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from transformers import GlmAsrEncoder, GlmAsrProcessor
from transformers.models.glmasr.modeling_glmasr import GlmAsrMultiModalProjector

from speech.errors import UserError
from speech.families.base import AudioEncoder
from speech.families.hearing.native import NESTED_PLACES, NativeFamily
from speech.families.hearing.windows import FRAMES, SILENCE, WindowEncoder, sound_frames
from speech.records import Utterance


class GlmAsrWindowEncoder(WindowEncoder):
    """Each window of 30 s is heard with its padding, by itself; only states of the sound are kept."""

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `AudioEncoder`; a state is the concatenation of all states of one position."""
        tower = self.tower
        windows, frames = zip(*(self.as_windows(item) for item in features), strict=True)
        states = tower(torch.cat(windows).to(tower.conv1.weight)).last_hidden_state
        states = states.reshape(len(states), -1, tower.config.intermediate_size)
        joined = states.split([len(item) for item in windows])
        return [item.flatten(0, 1)[: positions(count)] for item, count in zip(joined, frames, strict=True)]


def positions(frames: int) -> int:
    """One stride of 2, rounding up, then four to one, rounding down: 12.5 a second."""
    return ((frames - 1) // 2 + 1) // 4


class GlmAsrFamily(NativeFamily):
    """GLM-ASR-Nano. The response is the transcript and the first of the checkpoint's end tokens.

    Args:
        path: checkpoint folder.
        instruction: what the user's turn says after the audio; the checkpoint's own when it is not given.

    Raises:
        UserError: a file is missing, or the checkpoint is not of this form.
    """

    name = "glmasr"
    model_types = ("glmasr",)
    text_types = ("llama",)
    ties = True
    places = NESTED_PLACES

    def __init__(self, path: Path, instruction: str | None = None) -> None:
        super().__init__(path)
        self.instruction = instruction

    @cached_property
    def processor(self) -> GlmAsrProcessor:
        processor = GlmAsrProcessor.from_pretrained(self.path)
        if processor.chat_template is None:
            raise UserError(f"model folder {self.path} lacks chat_template.jinja")
        return self._checked(processor)

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(GlmAsrEncoder, self.model_config.audio_config, dtype)
        windows = int(self.processor.max_audio_len // (FRAMES / 100))
        return GlmAsrWindowEncoder(tower, self.processor.feature_extractor, windows=windows).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self._adaptor(partial(GlmAsrMultiModalProjector, self.model_config), dtype)

    def frames(self, samples: int) -> int:
        return sound_frames(samples) + SILENCE

    def audio_length(self, frames: int) -> int:
        return positions(frames - SILENCE)

    def prompt_text(self, utterance: Utterance) -> str:
        instruction = self.instruction or self.processor.default_transcription_prompt
        return self._user_turn(self.processor, [{"type": "audio"}, {"type": "text", "text": instruction}])
