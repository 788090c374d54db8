"""What a micro-batch contributes to the loss, for each objective of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from learner.batches.batch import PackedBatch
from learner.batches.plan import RankShare
from learner.config import SAMPLED_OBJECTIVES
from learner.losses.diffro import DiffRO
from learner.losses.distillation import needs_teacher
from learner.losses.supervised import sft_loss, supervised_loss
from learner.losses.terms import kl_terms, token_weights
from learner.metrics import Metrics
from learner.model.augment import augment_features
from learner.model.logprobs import TokenMasks, distribution_kl
from learner.model.policy import Policy, PolicyOutput
from learner.model.sampler import SamplerSettings
from learner.registries import POLICY_LOSSES
from learner.spec import RankSpec
from speech.records import EncodedAudio

MicroBatchKind = Literal["policy", "replay", "dummy"]


@dataclass(frozen=True, slots=True)
class ReferenceOutput:
    """A frozen model, the reference policy or a teacher, on a micro-batch.

    Attributes:
        logprobs: (T,) of the targets.
        hidden, head: see `PolicyOutput`; only where the loss holds the full KL.
    """

    logprobs: torch.Tensor
    hidden: torch.Tensor | None
    head: torch.Tensor | None


@dataclass
class UpdateContext:
    """A packed micro-batch with what was computed about it before the first update.

    Attributes:
        kind: `policy` for the objective's own groups, `replay` for SFT replay, `dummy` for a weightless stand-in.
        old_logprobs: (T,) of the policy before the step's first update; None when there is only one update,
            because they are then the current ones.
        reference: what the reference policy says; None when no KL is in the loss.
        teacher: what the teacher of distillation says; None without one.
        step: 1-based step of the run, on which augmentation and Gumbel noise depend.
        sample_gaps: (S,) largest |learner − engine| log-prob of each sample; filled in by the policy loss.
    """

    batch: PackedBatch
    kind: MicroBatchKind
    old_logprobs: torch.Tensor | None = None
    reference: ReferenceOutput | None = None
    teacher: ReferenceOutput | None = None
    step: int = 0
    sample_gaps: torch.Tensor | None = None


def needs_reference(spec: RankSpec) -> bool:
    """Whether a term of the loss asks for the reference policy; otherwise none is loaded."""
    return spec.objective in SAMPLED_OBJECTIVES and spec.config.loss.kl_coef > 0


def needs_full_kl(spec: RankSpec) -> bool:
    """Whether the loss holds KL(π ‖ π_ref) summed over the vocabulary."""
    return needs_reference(spec) and spec.config.loss.kl_estimator == "full"


def micro_batch_loss(
    policy: Policy,
    context: UpdateContext,
    share: RankShare,
    spec: RankSpec,
    audio: Mapping[int, EncodedAudio],
    diffro: DiffRO | None,
) -> tuple[torch.Tensor, dict[str, Metrics]]:
    """Forward pass and loss of one micro-batch.

    Args:
        diffro: the differentiable reward; None where the objective has none.

    Returns:
        The contribution to the batch's loss (already divided by the global totals, so that contributions add up
        over micro-batches and ranks), and the metrics as sums, by the prefix under which they are logged.
    """
    reinforcement = spec.objective in SAMPLED_OBJECTIVES and context.kind == "policy"
    if spec.config.augment and spec.objective == "sft":
        audio = augment_features(audio, context.batch.heard, seed=spec.seed * 1_000_003 + context.step)
    # Supervised targets are the data's distribution: temperature and masks belong to sampling only.
    sampler = spec.sampler if reinforcement else SamplerSettings()
    output = policy(context.batch, audio, sampler, spec.config.logits_chunk)
    if context.kind == "dummy":
        return output.logprobs.sum() * 0.0, {}
    if reinforcement:
        return _reinforced(output, context, share, spec, diffro)
    if context.kind == "replay":
        loss, metrics = sft_loss(output.logprobs, share.replay_totals)
        return loss * spec.replay_weight, {"replay": metrics}
    loss, metrics = supervised_loss(
        policy, output, context.batch, share.totals, spec.config.ctc_weight, spec.stop_ids[0], audio
    )
    return loss, {"learner": metrics}


def _reinforced(
    output: PolicyOutput, context: UpdateContext, share: RankShare, spec: RankSpec, diffro: DiffRO | None
) -> tuple[torch.Tensor, dict[str, Metrics]]:
    """L_GRPO(all) + λ·L_DiffRO(filtered) + β·KL (2509.18569 §3), without the first term in `diffro`."""
    loss, metrics = _grpo(output, context, share, spec)
    results = {"learner": metrics}
    if spec.objective == "diffro":
        # Its metrics are of interest all the same. A micro-batch without a chosen sample must still have a graph,
        # because FSDP2's collectives need every rank's backward pass.
        loss = output.logprobs.sum() * 0.0
    if diffro is not None:
        term, results["diffro"] = diffro.loss(output, context.batch, share.totals, spec.temperature, context.step)
        loss = loss + spec.config.diffro.weight * term
    if needs_full_kl(spec):
        kl = _full_kl(output, context.reference, context, spec)
        loss = loss + spec.config.loss.kl_coef * _weighted(kl, context, share, spec)
        metrics["full_kl"] = kl.detach().double().sum()
    if needs_teacher(spec):
        if spec.config.loss.kl_estimator == "full":
            kl = _full_kl(output, context.teacher, context, spec)
        else:
            assert context.teacher is not None
            kl = kl_terms(output.logprobs, context.teacher.logprobs, spec.config.loss.kl_estimator)
        loss = loss + spec.config.distillation.weight * _weighted(kl, context, share, spec)
        metrics["teacher_kl"] = kl.detach().double().sum()
    return loss, results


def _weighted(kl: torch.Tensor, context: UpdateContext, share: RankShare, spec: RankSpec) -> torch.Tensor:
    """A KL of each token, added up as the policy loss adds up its terms."""
    batch, device = context.batch, kl.device
    weights = token_weights(
        batch.sample_of.to(device), batch.sample_lengths.to(device), share.totals, spec.config.loss, kl.dtype
    )
    return (kl * weights).sum()


def _full_kl(
    output: PolicyOutput, reference: ReferenceOutput | None, context: UpdateContext, spec: RankSpec
) -> torch.Tensor:
    sampler = spec.sampler
    if reference is None or reference.hidden is None or reference.head is None:
        raise ValueError("the full KL needs the hidden states of the model that it is taken to")
    device, vocabulary = output.hidden.device, len(output.head)
    masks = TokenMasks.build(
        vocabulary,
        sampler.allowed_mask(vocabulary, device),
        context.batch.step_of.to(device),
        sampler.min_new_tokens,
        sampler.stop_ids,
    )
    return distribution_kl(
        output.hidden,
        output.head,
        reference.hidden,
        reference.head,
        masks,
        sampler.temperature,
        spec.config.logits_chunk,
    )


def _grpo(
    output: PolicyOutput, context: UpdateContext, share: RankShare, spec: RankSpec
) -> tuple[torch.Tensor, Metrics]:
    batch, new = context.batch, output.logprobs
    device = new.device
    old = new.detach() if context.old_logprobs is None else context.old_logprobs
    gaps = (old.cpu() - batch.behaviour_logprobs).abs()
    credit = {} if batch.token_credit is None else {"token_credit": batch.token_credit.to(device)}
    context.sample_gaps = torch.zeros(len(batch.sample_lengths)).scatter_reduce(0, batch.sample_of, gaps, "amax")
    return POLICY_LOSSES.find(spec.config.loss.name)(
        new_logprobs=new,
        old_logprobs=old,
        behaviour_logprobs=batch.behaviour_logprobs.to(device),
        reference_logprobs=None if context.reference is None else context.reference.logprobs,
        entropy=output.entropy,
        advantages=batch.advantages.to(device),
        sample_of=batch.sample_of.to(device),
        sample_lengths=batch.sample_lengths.to(device),
        totals=share.totals,
        config=spec.config.loss,
        **credit,
    )
