"""What a micro-batch contributes to the loss, for each objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from learner.augment import augment_features
from learner.batch import PackedBatch
from learner.losses import Metrics, find_policy_loss, sft_loss
from learner.plan import RankShare
from learner.policy import Policy, PolicyOutput, Processing
from speech.records import EncodedAudio

if TYPE_CHECKING:
    from learner.rank import RankSpec


MicroBatchKind = Literal["policy", "replay", "spare"]


@dataclass
class UpdateContext:
    """A packed micro-batch with what was computed about it before the first update.

    Attributes:
        kind: `policy` for the objective's own groups, `replay` for SFT replay, `spare` for a weightless stand-in.
        old_logprobs: (T,) of the policy before the step's first update; None when there is only one update,
            because they are then the current ones.
        reference_logprobs: (T,) of the frozen reference policy; None when the KL coefficient is 0.
        step: 1-based step of the run, on which augmentation depends.
        sample_gaps: (S,) largest |learner − engine| log-prob of each sample; filled in by the policy loss.
    """

    batch: PackedBatch
    kind: MicroBatchKind
    old_logprobs: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    step: int = 0
    sample_gaps: torch.Tensor | None = None


def needs_reference(spec: RankSpec) -> bool:
    """Whether a term of the loss asks for the reference policy; otherwise none is loaded."""
    return spec.objective == "grpo" and spec.config.loss.kl_coef > 0


def micro_batch_loss(
    policy: Policy, context: UpdateContext, share: RankShare, spec: RankSpec, audio: Mapping[int, EncodedAudio]
) -> tuple[torch.Tensor, Metrics]:
    """Forward pass and loss of one micro-batch.

    Returns:
        The contribution to the batch's loss (already divided by the global totals, so that contributions add up
        over micro-batches and ranks), and the loss's metrics as sums.
    """
    reinforcement = spec.objective == "grpo" and context.kind == "policy"
    if spec.config.augment and spec.objective == "sft":
        audio = augment_features(audio, context.batch.audio, seed=spec.seed * 1_000_003 + context.step)
    # Supervised targets are the data's distribution: temperature and masks belong to sampling only.
    sampler = spec.sampler if reinforcement else Processing()
    output = policy(context.batch, audio, sampler, spec.config.logits_chunk)
    if context.kind == "spare":
        return output.logprobs.sum() * 0.0, {}
    if reinforcement:
        return _grpo(output, context, share, spec)
    return _sft(policy, output, context, share, spec, audio)


def _grpo(
    output: PolicyOutput, context: UpdateContext, share: RankShare, spec: RankSpec
) -> tuple[torch.Tensor, Metrics]:
    batch, new = context.batch, output.logprobs
    device = new.device
    old = new.detach() if context.old_logprobs is None else context.old_logprobs
    gaps = (old.cpu() - batch.behaviour_logprobs).abs()
    context.sample_gaps = torch.zeros(len(batch.sample_lengths)).scatter_reduce(0, batch.sample_of, gaps, "amax")
    return find_policy_loss(spec.config.loss.name)(
        new_logprobs=new,
        old_logprobs=old,
        behaviour_logprobs=batch.behaviour_logprobs.to(device),
        reference_logprobs=context.reference_logprobs,
        entropy=output.entropy,
        advantages=batch.advantages.to(device),
        sample_of=batch.sample_of.to(device),
        sample_lengths=batch.sample_lengths.to(device),
        totals=share.totals,
        config=spec.config.loss,
    )


def _sft(
    policy: Policy,
    output: PolicyOutput,
    context: UpdateContext,
    share: RankShare,
    spec: RankSpec,
    audio: Mapping[int, EncodedAudio],
) -> tuple[torch.Tensor, Metrics]:
    if context.kind == "replay":
        loss, metrics = sft_loss(output.logprobs, share.replay_totals)
        return loss * spec.replay_weight, metrics
    loss, metrics = sft_loss(output.logprobs, share.totals)
    if policy.ctc is not None:
        used = sorted(set(context.batch.audio))
        ctc = ctc_loss(policy.ctc, output.encoder_states, [audio[i].ctc_ids for i in used], blank=spec.stop_ids[0])
        loss = loss + spec.config.ctc_weight * ctc / share.totals.tokens
        metrics["ctc"] = ctc.detach()
    return loss, metrics


def ctc_loss(
    head: torch.nn.Module, states: Sequence[torch.Tensor], targets: Sequence[Sequence[int]], blank: int
) -> torch.Tensor:
    """Sum over utterances of −log P_CTC(transcript | encoder states); it teaches an encoder from scratch to align.

    Args:
        head: (…, encoder_hidden) → (…, vocab).
        states: each (frames, encoder_hidden).
        targets: token ids, none of them `blank`, one sequence per utterance.
        blank: id of CTC's blank.
    """
    logits = head(torch.nn.utils.rnn.pad_sequence(list(states))).float()
    return F.ctc_loss(
        logits.log_softmax(-1),
        torch.tensor([i for sequence in targets for i in sequence], device=logits.device),
        torch.tensor([len(s) for s in states]),
        torch.tensor([len(t) for t in targets]),
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )
