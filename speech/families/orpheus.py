"""Orpheus (Canopy Labs): a Llama 3 that speaks the tokens of SNAC, seven a frame."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from speech.errors import UserError
from speech.families.causal import CausalSpeechFamily
from speech.records import PromptLayout

TEXT_START, TEXT_END = "<|begin_of_text|>", "<|eot_id|>"
SPEECH_START, SPEECH_END = "<custom_token_1>", "<custom_token_2>"
HUMAN_START, HUMAN_END = "<custom_token_3>", "<custom_token_4>"
ANSWER_START, ANSWER_END = "<custom_token_5>", "<custom_token_6>"

FRAME = 7
"""Tokens of a frame of SNAC."""


class OrpheusFamily(CausalSpeechFamily):
    """`<custom_token_3><|begin_of_text|>` text `<|eot_id|><custom_token_4><custom_token_5><custom_token_1>` → speech
    `<custom_token_2>`, as the authors' package and notebooks write it.

    Speech is `<custom_token_10>` and what follows, in whole frames: seven places of one codebook each (`SnacCodec`).
    What is left over at the end of the published vocabulary (two names) is no speech.

    A *fine-tuned* checkpoint knows voices by name: with the option `voice` the text becomes `tara: …`, and the
    recording of the utterance is not in the prompt (rewards may still compare with it). Without it a recording is shown
    before the text as a turn of its own, with its words and the end of its speech, as for the *pretrained* checkpoint.

    Raises:
        UserError: a file or a token is missing, or the name of the voice is empty or holds a colon.
    """

    name = "orpheus"
    model_types = ("llama",)
    codec = "snac"
    speech_token = "<custom_token_{}>"
    first_speech_token = 10
    stop_token = SPEECH_END
    markers = (TEXT_START, TEXT_END, SPEECH_START, HUMAN_START, HUMAN_END, ANSWER_START, ANSWER_END)

    def __init__(self, path: Path, voice: str | None = None) -> None:
        super().__init__(path)
        if voice is not None and (not voice.strip() or ":" in voice):
            raise UserError(f"model.options.voice: {voice!r} is no name of a voice, such as tara")
        self.voice = voice

    @cached_property
    def speech_ids(self) -> range:
        """Whole frames; see `CausalSpeechFamily`."""
        named = super().speech_ids
        return range(named.start, named.stop - len(named) % FRAME)

    def layout(self, text: str, voice_text: str, voice_tokens: Sequence[int]) -> PromptLayout:
        said = self.text_ids(text)
        speech = self.speech_token_ids(voice_tokens)
        shown: list[int] = []
        if self.voice is not None:
            said = self.text_ids(f"{self.voice}: {text.strip()}")
        elif speech:
            words = self.text_ids(voice_text, "prompt_text")
            shown = [*self._turn(words), *speech, self._id(SPEECH_END), self._id(ANSWER_END)]
        return PromptLayout((*shown, *self._turn(said)), audio_start=0, audio_length=0)

    def _turn(self, text: Sequence[int]) -> list[int]:
        """The text as the human's turn, and the start of speech."""
        before, after = (HUMAN_START, TEXT_START), (TEXT_END, HUMAN_END, ANSWER_START, SPEECH_START)
        return [*map(self._id, before), *text, *map(self._id, after)]
