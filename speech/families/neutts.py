"""NeuTTS (Neuphonic): a Qwen2 that reads phonemes and speaks the tokens of NeuCodec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from speech.errors import UserError, utf8_complaint
from speech.families.base import unusable
from speech.families.causal import CausalSpeechFamily
from speech.records import PromptLayout
from speech.runtime.registry import import_own

BEFORE, AFTER = "user: Convert the text to speech:", "\nassistant:"
TEXT_START, TEXT_END = "<|TEXT_PROMPT_START|>", "<|TEXT_PROMPT_END|>"
SPEECH_START, SPEECH_END = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>"
GIVEN = "given"


class NeuTTSFamily(CausalSpeechFamily):
    """`user: Convert the text to speech:<|TEXT_PROMPT_START|>` phonemes of the voice's words, phonemes of the text
    `<|TEXT_PROMPT_END|>`, a new line, `assistant:<|SPEECH_GENERATION_START|>` voice → speech
    `<|SPEECH_GENERATION_END|>`, as the authors' package writes it. A prompt voice is continued: its words are needed.

    The phonemes are those of espeak-ng, as that package takes them: through `phonemizer`, with punctuation and stress.

    Args:
        language: espeak-ng's name of the language of all texts.
        phonemes: `espeak`; `given` where the texts of the manifest are phonemes already; or a function of your own from
            text to phonemes, `module:function`.

    Raises:
        UserError: a file or a token is missing, or `phonemes` is none of these. What `espeak` needs is looked for when
            the first text is read, because only the processes that lay out prompts need it.
    """

    name = "neutts"
    model_types = ("qwen2",)
    codec = "neucodec"
    speech_token = "<|speech_{}|>"
    stop_token = SPEECH_END
    markers = (TEXT_START, TEXT_END, SPEECH_START)

    def __init__(self, path: Path, language: str = "en-us", phonemes: str = "espeak") -> None:
        super().__init__(path)
        self._language = language
        if phonemes not in ("espeak", GIVEN) and ":" not in phonemes:
            raise UserError(f"model.options.phonemes: {phonemes!r} is neither espeak, {GIVEN} nor module:function")
        self._phonemes = phonemes

    @cached_property
    def _spell(self) -> Callable[[str], Any]:
        """Text to phonemes, each text once: a voice's words are read for every prompt."""
        if self._phonemes == GIVEN:
            return str
        if self._phonemes == "espeak":
            backend = _espeak(self._language)
            return lru_cache(maxsize=4096)(lambda text: backend.phonemize([text])[0])
        return lru_cache(maxsize=4096)(import_own("function to phonemes", self._phonemes))

    def text_ids(self, text: str, what: str = "text") -> list[int]:
        """See `CausalSpeechFamily`. Control tokens are looked for in the text itself: their phonemes would be read out.

        Raises:
            UserError: there is nothing that makes phonemes.
        """
        if utf8_complaint(text) is None:
            complaints = self.control_complaints(text, self.tokenizer.encode(text, add_special_tokens=False))
            if complaints:
                raise unusable(text, what, complaints)
        return super().text_ids(text, what)

    def prepare_text(self, text: str) -> str:
        """Phonemes, with one space between words."""
        written = super().prepare_text(text)
        found = self._spell(written) if written else ""
        if not isinstance(found, str):
            raise UserError(f"model.options.phonemes: {written!r} became a {type(found).__name__}, not a str")
        return " ".join(found.split())

    def layout(self, text: str, voice_text: str, voice_tokens: Sequence[int]) -> PromptLayout:
        spoken = self.text_ids(text)
        if voice_tokens:
            # The voice is continued: without its words the text would begin with speech that it does not contain.
            self.text_ids(voice_text, "prompt_text")
            both = f"{self.prepare_text(voice_text)} {self.prepare_text(text)}"
            spoken = self.tokenizer.encode(both, add_special_tokens=False)
        ids = [
            *self.tokenizer.encode(BEFORE),
            self._id(TEXT_START),
            *spoken,
            self._id(TEXT_END),
            *self.tokenizer.encode(AFTER, add_special_tokens=False),
            self._id(SPEECH_START),
            *self.speech_token_ids(voice_tokens),
        ]
        return PromptLayout(tuple(ids), audio_start=0, audio_length=0)


@lru_cache(maxsize=8)
def _espeak(language: str) -> Any:
    """phonemizer's backend, which takes a moment to start.

    Raises:
        UserError: `phonemizer` or espeak-ng is not installed, or has no such language.
    """
    try:
        from phonemizer.backend import EspeakBackend
    except ImportError as error:
        raise UserError(
            "neutts reads phonemes: install phonemizer (pip install 'speechrl[models]') and espeak-ng, or set "
            f"model.options.phonemes to {GIVEN} or to a function of your own, module:function"
        ) from error
    try:
        return EspeakBackend(language=language, preserve_punctuation=True, with_stress=True)
    except RuntimeError as error:
        raise UserError(f"model.options.language: {language}: phonemizer's espeak cannot be used: {error}") from error
