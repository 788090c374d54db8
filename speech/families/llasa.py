"""Llasa (arXiv 2502.04128): a Llama whose vocabulary was extended by the tokens of XCodec2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from speech.errors import UserError
from speech.families.causal import CausalSpeechFamily
from speech.records import PromptLayout
from speech.text import join_texts

TEXT_START, TEXT_END = "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
SPEECH_START, SPEECH_END = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>"
REQUEST = "Convert the text to speech:"

DATE = "26 Jul 2024"
"""Llama's chat template writes today's date into the system turn: the prompt, and so the log-probs, would change at
midnight. This is what the template itself says where it has no clock."""


class LlasaFamily(CausalSpeechFamily):
    """The checkpoint's chat template with the user turn `Convert the text to speech:` and the text between
    `<|TEXT_UNDERSTANDING_START|>` and `…_END|>`; the assistant's turn starts with `<|SPEECH_GENERATION_START|>`.

    A prompt voice is continued: its words stand before the text, its tokens at the start of the assistant's turn. That
    needs the words: without them the text would begin with speech that it does not contain.

    Raises:
        UserError: a file or a token is missing, or there is no usable chat template.
    """

    name = "llasa"
    model_types = ("llama",)
    codec = "xcodec2"
    stop_token = SPEECH_END
    markers = (TEXT_START, TEXT_END, SPEECH_START)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.tokenizer.chat_template is None:
            raise UserError(f"model folder {path} lacks a chat template")
        self._before, self._after = self._turns()

    def layout(self, text: str, voice_text: str, voice_tokens: Sequence[int]) -> PromptLayout:
        self.text_ids(text)
        if voice_tokens:
            self.text_ids(voice_text, "prompt_text")
        spoken = join_texts(voice_text if voice_tokens else "", text)
        ids = [*self._before, *self.text_ids(spoken), *self._after, *self.speech_token_ids(voice_tokens)]
        return PromptLayout(tuple(ids), audio_start=0, audio_length=0)

    def _turns(self) -> tuple[list[int], list[int]]:
        """Ids up to and including `TEXT_START`, and from `TEXT_END` to `SPEECH_START`."""
        chat = [
            {"role": "user", "content": f"{REQUEST}{TEXT_START}{TEXT_END}"},
            {"role": "assistant", "content": SPEECH_START},
        ]
        try:
            written = self.tokenizer.apply_chat_template(
                chat, tokenize=False, continue_final_message=True, date_string=DATE
            )
        except (ValueError, TemplateError) as error:
            raise UserError(f"{self.path}: the chat template does not work: {error}") from error
        ids: list[int] = self.tokenizer.encode(written, add_special_tokens=False)
        start, end = self._id(TEXT_START), self._id(TEXT_END)
        if ids.count(start) != 1 or ids[ids.index(start) + 1 :][:1] != [end] or ids[-1] != self._id(SPEECH_START):
            raise UserError(f"{self.path}: the chat template does not end in the text and the start of speech")
        middle = ids.index(end)
        return ids[:middle], ids[middle:]
