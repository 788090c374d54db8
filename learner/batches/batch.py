"""What the learner trains on: groups of samples, and their packed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import torch

from speech.records import PromptLayout


@dataclass(frozen=True, slots=True)
class Sample:
    """One valid trajectory, reduced to what a loss needs.

    Attributes:
        token_ids: response ids, stop token included.
        behaviour_logprobs: the engine's processed log-probs, same length (empty for SFT).
        advantage: one number for the whole response (1.0 for SFT).
        finished: a stop token was drawn, and is therefore the last of `token_ids`.
        token_credit: by how much each token's advantage differs from `advantage`, with mean 0; empty where none does.
    """

    token_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    advantage: float
    finished: bool = False
    token_credit: tuple[float, ...] = ()

    @property
    def speech_tokens(self) -> int:
        """Tokens before the stop token: in TTS, the speech itself."""
        return len(self.token_ids) - self.finished


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """A prompt and the samples that share it.

    Attributes:
        audio: index of the prompt in its step. It finds the encoded audio sent along, if the prompt has any, and names
            the group wherever something random belongs to it.
        text_ids: what should be said, as labels of the Token2Text reward model (DiffRO only).
        attributes: class of each attribute that the reward model judges, in its order; −1 where it is not known.
    """

    layout: PromptLayout
    samples: tuple[Sample, ...]
    audio: int
    text_ids: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()

    @property
    def packed_length(self) -> int:
        """Positions in shared-prefix form: P + Σ R."""
        return len(self.layout.token_ids) + sum(len(s.token_ids) for s in self.samples)

    @property
    def response_tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.samples)


@dataclass(frozen=True, slots=True)
class Block:
    """One prompt with its responses inside a packed row.

    Positions [start, start + prompt) are the prompt; the responses follow, one after the other. Every response
    attends to the prompt and to itself, never to its siblings.
    """

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prompt + sum(self.responses)


SampleRef = tuple[TrainGroup, int]
"""A sample: its group and its place in the group."""


class SampleRefs(Sequence[SampleRef]):
    """The samples of a packed batch, as the groups that they came in.

    Not a tuple: FSDP2 walks through every dataclass, list and tuple among a module's arguments in search of tensors,
    here through each token of each group once per sample, which took a fifth of an update. It passes this by.
    """

    def __init__(self, members: Iterable[SampleRef]) -> None:
        self._members = tuple(members)

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> SampleRef: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SampleRef]: ...

    def __getitem__(self, index: int | slice) -> SampleRef | Sequence[SampleRef]:
        return self._members[index]


@dataclass(slots=True)
class PackedBatch:
    """A micro-batch without padding: N positions in one row, T trained tokens, S samples.

    Attributes:
        input_ids: (N,) token ids; audio positions hold a placeholder.
        position_ids: (N,) each response continues at its prompt's length.
        audio_positions: (A,) rows to be filled with audio embeddings, in the order of `heard`.
        audio: per prompt copy in this row, the index into the encoded audio list.
        heard: the same for the copies whose prompt holds audio; all or none, unless prompts of both kinds are mixed.
        blocks: attention structure.
        predict_from: (T,) row whose hidden state predicts target t (the first target of every response is
            predicted by the prompt's last position).
        targets: (T,) token ids.
        sample_of: (T,) index 0 … S − 1 of the sample that a target belongs to.
        step_of: (T,) index of the target in its response.
        sample_lengths: (S,) response lengths.
        behaviour_logprobs: (T,) float32, zeros when there are none.
        advantages: (S,) float32.
        members: per sample, its group and its place in the group.
        token_credit: (T,) float32, added to the advantage of each target; None where no sample has any.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    audio_positions: torch.Tensor
    audio: tuple[int, ...]
    heard: tuple[int, ...]
    blocks: tuple[Block, ...]
    predict_from: torch.Tensor
    targets: torch.Tensor
    sample_of: torch.Tensor
    step_of: torch.Tensor
    sample_lengths: torch.Tensor
    behaviour_logprobs: torch.Tensor
    advantages: torch.Tensor
    members: SampleRefs
    token_credit: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Counts over *all* ranks and micro-batches of an optimiser step, so that normalisation does not depend on them.

    Attributes:
        tokens: trained (response) tokens.
        samples: responses.
        chosen_samples: responses that pass DiffRO's sample filter.
        chosen_labels: labels of their texts; a text that does not fit into its speech has no likelihood, and none here.
    """

    tokens: int
    samples: int
    chosen_samples: int = 0
    chosen_labels: int = 0
