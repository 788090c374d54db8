"""What a model family must say about its models.

For ASR a family splits an "encoder + adaptor + language model" checkpoint into its three parts; for TTS it joins text
and a prompt voice to speech tokens. Both lay out the prompt, read the output, and translate parameter names.
Everything else in the system is the same for all.
"""

from __future__ import annotations

import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from speech.errors import InputError, Problem, utf8_complaint
from speech.families.checkpoint import LowRank
from speech.records import PromptLayout, Utterance

_BRACKETED = re.compile(r"<.+>|\[.+\]")


class AudioEncoder(nn.Module, ABC):
    """The (usually frozen) front of a speech LM, without its adaptor."""

    @abstractmethod
    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) float32 at the family's sample rate → input features (frames, feature_size)."""

    @abstractmethod
    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features of a batch → encoder states, each (states, encoder_hidden), padding removed.

        The result for an utterance must not depend on its neighbours in the batch.
        """


class LanguageModelFamily(ABC):
    """What every family says, whatever its model reads and writes: one registry entry bound to one checkpoint folder.

    Attributes:
        name: registry key (`model.family` in YAML).
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in `config.json` that belong to this family."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages that it needs and that are not always installed, by the names that pip has for them."""

    def __init__(self, path: Path) -> None:
        """Bind to a checkpoint folder.

        Raises:
            UserError: a file of the checkpoint is missing or is of another family.
        """
        self.path = path

    @classmethod
    def options(cls) -> list[str]:
        """Names of the options that its class takes (`model.options`)."""
        return [parameter for parameter in inspect.signature(cls).parameters if parameter != "path"]

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this `config.json` is of this family; asked when no family is named."""
        return config.get("model_type") in cls.model_types

    @classmethod
    def foreign_to(cls, folder: Path) -> str | None:
        """Why a checkpoint is not of this family although its `config.json` may be; asked when several recognise it."""
        return None

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def may_stand_in_text(self, token: str) -> bool:
        """Whether a control token may stand in the texts of users, such as the sign for a breath."""
        return False

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """Tokens by id that would be orders to the model, not characters, if a text were allowed to hold them.

        They are those that the tokenizer calls special, and others that were added to it in brackets (`<asr_text>`,
        `<|s_0|>`); other additions are words.
        """
        return {
            token: added.content
            for token, added in self.tokenizer.added_tokens_decoder.items()
            if (added.special or _BRACKETED.fullmatch(added.content)) and not self.may_stand_in_text(added.content)
        }

    def text_ids(self, text: str, what: str = "text") -> list[int]:
        """Token ids of a user's text.

        Args:
            what: how messages call it.

        Raises:
            InputError: it holds control tokens, or characters for which the tokenizer has no ids.
        """
        complaint = utf8_complaint(text)
        if complaint is not None:  # of which tokenizers only say that it is no text
            raise unusable(text, what, [complaint])
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        complaints = self.control_complaints(text, ids)
        if complaints:
            raise unusable(text, what, complaints)
        return ids

    def control_complaints(self, text: str, ids: Sequence[int]) -> list[str]:
        """What control tokens do among the ids of a text, which they must not be."""
        complaints = []
        for token in dict.fromkeys(ids):
            content = self.control_tokens.get(token)
            if content is not None and token == self.tokenizer.unk_token_id and content not in text:
                complaints.append("holds characters for which the tokenizer has no ids")
            elif content is not None:
                complaints.append(f"holds the control token {content}")
        return complaints

    @property
    @abstractmethod
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a response; the sampled stop token is part of the trajectory and is trained."""

    @property
    def allowed_token_ids(self) -> tuple[int, ...] | None:
        """The only ids that may be sampled, stop ids included, ascending; None for the whole vocabulary.

        Engine and learner both apply it, or their log-probs would be of different distributions.
        """
        return None

    @abstractmethod
    def load_language_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The causal LM alone, on CPU, in eval mode (dropout off)."""

    @abstractmethod
    def write_engine_model(self, folder: Path) -> None:
        """Write the language model alone as a Hugging Face folder that vLLM can load (config, weights, tokenizer)."""

    @abstractmethod
    def export(self, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor | LowRank]]) -> None:
        """Write a full checkpoint in the family's own Hugging Face form.

        Args:
            folder: where to write; created, must not exist.
            states: new full tensors by part (`language_model`, and for ASR `adaptor`, `encoder`, `ctc`), keyed by the
                parameter names of the modules returned by the `load_*` methods; or what LoRA adds to a weight. Parts
                and parameters not given keep their weights.
        """

    def engine_name(self, name: str) -> str:
        """Parameter name in `load_language_model()` → name that the engine's loader expects."""
        return name

    def parse_output(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        """Sampled ids → (what they say in words, language the model claims or None); no words where it speaks."""
        return "", None

    def config(self) -> dict[str, Any]:
        """The checkpoint's `config.json`."""
        return json.loads((self.path / "config.json").read_text(encoding="utf-8"))


class ModelFamily(LanguageModelFamily):
    """A family whose language model hears: "encoder + adaptor + language model", for ASR.

    Attributes:
        sample_rate: Hz that `AudioEncoder.features` expects.
        languages: codes of all that its released models know; None where checkpoints differ, or nothing says it.
        prompts_keywords: whether prompts hold the utterances' keywords; otherwise they depend on the language alone.
    """

    sample_rate: ClassVar[int]
    languages: ClassVar[frozenset[str] | None] = None
    prompts_keywords: bool = False

    @abstractmethod
    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder: ...

    @abstractmethod
    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A module mapping encoder states (states, encoder_hidden) → embeddings (audio_length, hidden)."""

    @abstractmethod
    def frames(self, samples: int) -> int:
        """Number of feature frames that `AudioEncoder.features` makes of so many samples."""

    @abstractmethod
    def audio_length(self, frames: int) -> int:
        """Number of audio positions in the prompt for an input of `frames` feature frames."""

    @abstractmethod
    def layout(self, utterance: Utterance, audio_length: int) -> PromptLayout:
        """Token ids of the prompt with `audio_length` audio positions in place."""

    @abstractmethod
    def target_ids(self, utterance: Utterance) -> list[int]:
        """Token ids of the reference response, stop token included (for SFT).

        Raises:
            InputError: the transcript cannot be a response: see `text_ids`.
        """

    @abstractmethod
    def parse_output(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        """Sampled ids → (transcript, language the model claims or None), markers stripped."""

    def ctc_head(self) -> nn.Module | None:
        """An auxiliary CTC head over encoder states for SFT from scratch, (…, encoder_hidden) → (…, vocab), or None."""
        return None

    def ctc_ids(self, utterance: Utterance) -> list[int]:
        """The transcript as the auxiliary CTC head's targets; empty for families without one."""
        return []


class SpeechFamily(LanguageModelFamily):
    """A family whose language model speaks: text and a prompt voice → speech tokens of a codec, for TTS.

    Attributes:
        codec: registry key of the codec whose tokens the model speaks.
    """

    codec: str

    @property
    @abstractmethod
    def speech_ids(self) -> range:
        """Ids of the codec's tokens 0 … size − 1, in this order, in the language model's vocabulary."""

    @property
    @abstractmethod
    def stop_token_ids(self) -> tuple[int, ...]:
        """The one id that ends speech.

        A checkpoint may know several. They would be one action with a summed probability, which neither the engine's
        sampler nor its log-probs can express; the others are therefore not allowed at all
        (docs/decisions/018-one-stop-token-for-speech.md).
        """

    @cached_property
    def allowed_token_ids(self) -> tuple[int, ...]:
        """Speech and stop, nothing else: a speech LM that samples a text token has no sound for it (PAPER §6)."""
        return tuple(sorted({*self.speech_ids, *self.stop_token_ids}))

    @abstractmethod
    def layout(self, text: str, voice_text: str, voice_tokens: Sequence[int]) -> PromptLayout:
        """The prompt: all token ids, no audio positions.

        Args:
            text: what to say; behind an instruction and `<|endofprompt|>` where the utterance has one.
            voice_text: what is said in the prompt voice; empty when the family does not use it.
            voice_tokens: codec ids of the prompt voice, shared by a whole group.

        Raises:
            InputError: the text is empty, or has an instruction, control tokens or characters that the model cannot
                read; all of them are named.
            ValueError: a voice token is none of the codec's.
        """

    def target_ids(self, speech_tokens: Sequence[int]) -> list[int]:
        """Codec ids of the reference speech → ids of the response, a stop token included (for SFT).

        Raises:
            ValueError: an id is none of the codec's.
        """
        return [*self.speech_token_ids(speech_tokens), *self.stop_token_ids]

    def speech_token_ids(self, speech_tokens: Sequence[int]) -> list[int]:
        """Codec ids → ids in the language model's vocabulary.

        Raises:
            ValueError: an id is none of the codec's.
        """
        wrong = [token for token in speech_tokens if not 0 <= token < len(self.speech_ids)]
        if wrong:
            raise ValueError(f"speech token {wrong[0]} is none of the model's 0 … {len(self.speech_ids) - 1}")
        return [self.speech_ids.start + int(token) for token in speech_tokens]

    def speech_tokens(self, token_ids: Sequence[int]) -> list[int]:
        """Sampled ids → codec ids, stop tokens dropped.

        Raises:
            ValueError: an id is neither speech nor stop, which `allowed_token_ids` should have ruled out.
        """
        spoken = [token for token in token_ids if token not in self.stop_token_ids]
        wrong = [token for token in spoken if token not in self.speech_ids]
        if wrong:
            raise ValueError(
                f"token {wrong[0]} is neither speech nor stop: the engine sampled without the family's mask"
            )
        return [token - self.speech_ids.start for token in spoken]


def unusable(text: str, what: str, complaints: Sequence[str]) -> InputError:
    """The error of a text with which a model can do nothing."""
    shown = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    where = (shown if len(shown) <= 40 else f"{shown[:39]}…") or "text"
    return InputError(f"{what} that the model cannot use", [Problem(where, None, what, item) for item in complaints])
