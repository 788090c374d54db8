"""The records that pass between rollout, rewards and learner.

They hold plain values and small integer lists only: audio and tensors travel as object references beside
them, so that the controller never touches a sample of sound or a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length"]

INSTRUCTION_END = "<|endofprompt|>"
"""Where the instruction to a voice ends in a text (`speak softly<|endofprompt|>hello`), in the form of CosyVoice2."""


def split_instruction(text: str) -> tuple[str, str]:
    """`instruction<|endofprompt|>text` → (instruction, text); a text without the mark has an empty instruction."""
    before, mark, after = text.partition(INSTRUCTION_END)
    return (before, after) if mark else ("", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One line of a manifest.

    Attributes:
        id: unique in its manifest.
        audio: absolute path of the audio file; empty for a text to be spoken of which no recording exists (TTS).
        text: reference transcript, or what is to be spoken, as written by the user (normalised only when scored).
        language: ISO 639-1 code (`en`, `zh`), or None when the manifest does not say.
        speaker: speaker label, or None.
        start: seconds into the file where the utterance begins.
        duration: seconds, or None for "up to the end of the file".
        channel: of a file with several, counted from 0; None averages all.
        keywords: words or names that must be transcribed (reward R3).
        prompt_audio: absolute path of the prompt voice in which the text is to be spoken (TTS), or None.
        prompt_text: what is said in the prompt voice; empty when the manifest does not say.
        instruction: how the text is to be said (TTS), which nobody should hear; empty for most.
        attributes: class of each attribute of the speech that the manifest names (`{"gender": "f"}`), for the
            Token2Text reward model.
    """

    id: str
    audio: str
    text: str
    language: str | None = None
    speaker: str | None = None
    start: float = 0.0
    duration: float | None = None
    channel: int | None = None
    keywords: tuple[str, ...] = ()
    prompt_audio: str | None = None
    prompt_text: str = ""
    instruction: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def instructed_text(self) -> str:
        """The text behind its instruction, as manifests hold it and models read it; no reward should see it."""
        return f"{self.instruction}{INSTRUCTION_END}{self.text}" if self.instruction else self.text


@dataclass(frozen=True, slots=True)
class BadUtterance:
    """An utterance that cannot be used. It stands in the place of a result, so that the others keep theirs.

    Attributes:
        id: of the utterance.
        reason: what is wrong with it, in a line.
        lethal: whether it cost so many actors that it may not be given to another.
    """

    id: str
    reason: str
    lethal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request for a group of samples: an utterance at its place in an epoch.

    Attributes:
        id: `"<epoch>/<utterance id>"`, unique in a run. Prompts are the unit of exactly-once.
        position: index in the epoch's order.
        seed: 31-bit sampling seed derived from (run seed, epoch, utterance id).
    """

    id: str
    utterance: Utterance
    epoch: int
    position: int
    seed: int


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Where text and sound stand in the language model's input.

    Attributes:
        token_ids: one id per position; positions of audio hold a placeholder id that is never embedded.
        audio_start: first audio position.
        audio_length: number of audio positions, one per embedding.
    """

    token_ids: tuple[int, ...]
    audio_start: int
    audio_length: int

    def __post_init__(self) -> None:
        if not 0 <= self.audio_start <= self.audio_start + self.audio_length <= len(self.token_ids):
            raise ValueError(
                f"audio positions [{self.audio_start}, {self.audio_start + self.audio_length}) lie outside a "
                f"prompt of {len(self.token_ids)} positions"
            )

    @property
    def is_token(self) -> list[bool]:
        """True where the position is a token, False where it is an audio embedding."""
        end = self.audio_start + self.audio_length
        return [not self.audio_start <= i < end for i in range(len(self.token_ids))]


@dataclass(frozen=True, slots=True)
class EncodedAudio:
    """What the audio encoder leaves in the object store for one utterance and step.

    Attributes:
        layout: the prompt that these embeddings complete.
        embeddings: float tensor (audio_length, hidden), the adaptor's output; None when the learner trains the
            encoder and therefore computes it itself.
        encoder_states: float tensor (frames, encoder_hidden), the adaptor's input; only present when the
            adaptor is trained, because the learner must then run it with gradients.
        features: float tensor (frames, feature_size), the encoder's input; only present when the learner trains
            the encoder (SFT).
        ctc_ids: targets of the auxiliary CTC loss; only present with `features`.
        seconds: length of the audio.
        peak: largest absolute sample, in [0, 1]; silence is a property of the sound, which rewards may ask for.
        voice_tokens: codec ids of the prompt voice (TTS), of which there are no embeddings; empty in ASR.
    """

    layout: PromptLayout
    embeddings: torch.Tensor | None
    encoder_states: torch.Tensor | None
    seconds: float
    peak: float
    features: torch.Tensor | None = None
    ctc_ids: tuple[int, ...] = ()
    voice_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One sample of a prompt, exactly as the engine drew it. Nothing is ever re-tokenised.

    Attributes:
        index: position in the group, 0 … group_size − 1.
        token_ids: sampled ids, the stop token included.
        logprobs: *processed* log-probabilities (after temperature and masks) of those ids, same length.
        version_first, version_last: policy versions at the first and at the last token.
        finish_reason: `stop` when a stop token was drawn, `length` when the budget ran out.
        seed: the sampler's seed for this sample.
        text: decoded and cleaned up by the model family.
        language: language the model itself claims, if its output format says so.
        speech_tokens: codec ids that the family read out of `token_ids`, stop tokens dropped; empty in ASR.
        spans: characters [start, end) of `text` that each token wrote; only where a reward asks for them, else empty.
    """

    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version_first: int
    version_last: int
    finish_reason: FinishReason
    seed: int
    text: str
    language: str | None = None
    speech_tokens: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(
                f"{self.prompt_id}#{self.index}: {len(self.token_ids)} tokens but {len(self.logprobs)} log-probs"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One number with named parts.

    Attributes:
        total: the weighted sum, or None when the sample is invalid.
        parts: unweighted value of each reward in the composition (`accuracy`, `hallucination`, …).
        details: what the parts were made of, for logs only (`accuracy/wer`, `hallucination/loop`, …).
        invalid: why the sample has no reward (judge error, time-out), or None. Invalid samples are masked
            out of their group and counted; they are never scored 0.
        token_credit: by how much each token's reward differs from the total, in the total's units and with mean 0;
            empty where all tokens have the total.
    """

    total: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)
    invalid: str | None = None
    token_credit: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.total is None) != (self.invalid is not None):
            raise ValueError("a reward has either a total or a reason for being invalid")

    @property
    def valid(self) -> bool:
        return self.invalid is None


@dataclass(frozen=True, slots=True)
class Group:
    """The G samples of one prompt, with their rewards once scored.

    Attributes:
        seconds, peak: of the prompt's audio, copied from the encoder so that rewards can know silence.
        rewards: one per trajectory, empty before scoring.
        voice_tokens: codec ids of the prompt voice, one voice for the whole group; empty in ASR.
        past_lengths: numbers of speech tokens of earlier samples of the same utterance that ended naturally, oldest
            first; the history of the duration reward, kept by whoever builds the group.
    """

    prompt: Prompt
    layout: PromptLayout
    trajectories: tuple[Trajectory, ...]
    seconds: float
    peak: float
    rewards: tuple[Reward, ...] = ()
    voice_tokens: tuple[int, ...] = ()
    past_lengths: tuple[int, ...] = ()
