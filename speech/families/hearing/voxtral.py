"""Voxtral (2507.13264) in its transcription form: Whisper's encoder, four states a position, a Llama of Mistral's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, VoxtralEncoder, WhisperFeatureExtractor
from transformers.models.voxtral.modeling_voxtral import VoxtralMultiModalProjector

from speech.errors import UserError
from speech.families.base import AudioEncoder
from speech.families.hearing.native import NESTED_PLACES, NativeFamily
from speech.families.hearing.windows import FRAMES, SILENCE, WindowEncoder, sound_frames
from speech.records import PromptLayout, Utterance
from speech.runtime.checkpoint_files import require_files


class VoxtralWindowEncoder(WindowEncoder):
    """Windows are heard with their padding: the model was trained with positions for 30 s, sound or not."""

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `AudioEncoder`; a state is the concatenation of all states of one position."""
        config = self.tower.config
        windows = [self.as_windows(item)[0] for item in features]
        states = self.tower(torch.cat(windows).to(self.tower.conv1.weight)).last_hidden_state
        # One utterance's windows follow one another, so that its states stand in one piece.
        joined = states.split([len(item) for item in windows])
        return [item.reshape(-1, config.intermediate_size) for item in joined]


class VoxtralFamily(NativeFamily):
    """Voxtral Mini and Small. The prompt is `[INST][BEGIN_AUDIO]` audio `[/INST]lang:en[TRANSCRIBE]`.

    Args:
        path: checkpoint folder.
        force_language: put `lang:en` into the prompt: `True` wherever the utterance's language is known, a code such
            as `en` for every utterance. Otherwise the model hears the language itself, and does not say it.

    Raises:
        UserError: a file or a package is missing, or the checkpoint is not of this form.
    """

    name = "voxtral"
    model_types = ("voxtral",)
    text_types = ("llama",)
    packages = ("mistral-common",)
    tokenizer_files = ("tekken.json",)
    places = NESTED_PLACES
    stop_token = "</s>"

    def __init__(self, path: Path, force_language: bool | str = False) -> None:
        if not isinstance(force_language, bool) and not (isinstance(force_language, str) and len(force_language) == 2):
            raise UserError(f"force_language is {force_language!r}; give true, false or a code of two letters")
        super().__init__(path)
        self.force_language = force_language

    def _check_files(self) -> None:
        require_files(self.path, ["config.json", "tekken.json", "preprocessor_config.json"])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            from transformers.tokenization_mistral_common import MistralCommonBackend

            return MistralCommonBackend.from_pretrained(self.path)
        except ImportError as error:
            raise UserError(
                f"{self.path}: Voxtral's tokenizer needs the package mistral-common (pip install mistral-common)"
            ) from error

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """All that are special. The tokenizer reads none of them from a text."""
        return {token: str(self.tokenizer.convert_ids_to_tokens(token)) for token in self.tokenizer.all_special_ids}

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(VoxtralEncoder, self.model_config.audio_config, dtype)
        extractor = WhisperFeatureExtractor.from_pretrained(self.path)
        return VoxtralWindowEncoder(tower, extractor, joint=True, windows=None).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self._adaptor(partial(VoxtralMultiModalProjector, self.model_config), dtype)

    def frames(self, samples: int) -> int:
        return sound_frames(samples) + SILENCE

    def audio_length(self, frames: int) -> int:
        """Those of whole windows: 375 for each 30 s begun, in a model with four states a position."""
        config = self.model_config.audio_config
        return (
            -(-(frames - SILENCE) // FRAMES)
            * config.max_source_positions
            * config.hidden_size
            // (config.intermediate_size)
        )

    def prompt_text(self, utterance: Utterance) -> str:
        language = self.force_language if isinstance(self.force_language, str) else utterance.language
        return f"lang:{language}" if self.force_language and language else ""

    def layout(self, utterance: Utterance, audio_length: int) -> PromptLayout:
        before = [self._id(token) for token in ("<s>", "[INST]", "[BEGIN_AUDIO]")]
        language: list[int] = self.tokenizer.encode(self.prompt_text(utterance), add_special_tokens=False)
        after = [self._id("[/INST]"), *language, self._id("[TRANSCRIBE]")]
        return PromptLayout((*before, *[self.audio_token] * audio_length, *after), len(before), audio_length)
