"""The embedded demo TTS family: a small Qwen3 that speaks, trained by our own recipe (`assets/build/tts_model.py`)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speech.errors import UserError
from speech.families.causal import CausalSpeechFamily
from speech.records import PromptLayout

SECTION = "speechrl_demo_tts"
"""Key of `config.json` under which the checkpoint says what a plain Qwen3 has no word for."""

VOICE_START, TEXT_START = "<|voice_start|>", "<|text_start|>"
SPEECH_START, SPEECH_END = "<|speech_start|>", "<|speech_end|>"


class DemoTTSFamily(CausalSpeechFamily):
    """`<|voice_start|>` voice `<|text_start|>` text `<|speech_start|>` → speech `<|speech_end|>`.

    The checkpoint is a plain Qwen3 for transformers and vLLM alike. Its `config.json` has one more section, with the
    keys `codec` (registry name), `codec_size` (number of speech tokens), `max_voice_tokens` (the prompt voice is cut
    to as many; a whole number of the codec's frames) and `characters` (what the model has learned to read, or null for
    everything).

    The voice comes first: prompts with the same voice then share a prefix, which the engine computes once. What is said
    in it is not used.

    Raises:
        UserError: a file, a token or a key of the section is missing, or they contradict one another.
    """

    name = "demo_tts"
    model_types = ("qwen3",)
    stop_token = SPEECH_END
    markers = (VOICE_START, TEXT_START, SPEECH_START)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        section = self.config()[SECTION]
        missing = [k for k in ("codec", "codec_size", "max_voice_tokens", "characters") if k not in section]
        if missing:
            raise UserError(f"{path / 'config.json'}: {SECTION} lacks {', '.join(missing)}")
        self.codec = str(section["codec"])
        self.max_voice_tokens = int(section["max_voice_tokens"])
        self.characters: str | None = section["characters"]
        if len(self.speech_ids) != section["codec_size"]:
            raise UserError(
                f"{path / 'config.json'}: {SECTION}.codec_size is {section['codec_size']}, the tokenizer has "
                f"{len(self.speech_ids)} speech tokens"
            )

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in cls.model_types and SECTION in config

    def layout(self, text: str, voice_text: str, voice_tokens: Sequence[int]) -> PromptLayout:
        ids = [
            self._id(VOICE_START),
            *self.speech_token_ids(voice_tokens[: self.max_voice_tokens]),
            self._id(TEXT_START),
            *self.text_ids(text),
            self._id(SPEECH_START),
        ]
        return PromptLayout(tuple(ids), audio_start=0, audio_length=0)

    def prepare_text(self, text: str) -> str:
        """Lower case, and without the punctuation that the model has not learned: it would be read as nothing."""
        text = super().prepare_text(text)
        if self.characters is None:
            return text
        kept = (c for c in text.lower() if c in self.characters or not unicodedata.category(c).startswith("P"))
        return " ".join("".join(kept).split())

    def reads(self, character: str) -> bool:
        known = self.characters is None or character.isspace() or character in self.characters
        return known and super().reads(character)
