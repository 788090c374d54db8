"""Cross-entropy on references: the objective `sft`, and replay beside rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from learner.batches.batch import BatchTotals, PackedBatch
from learner.metrics import Metrics
from learner.model.policy import Policy, PolicyOutput
from speech.records import EncodedAudio


def sft_loss(new_logprobs: torch.Tensor, totals: BatchTotals) -> tuple[torch.Tensor, Metrics]:
    """Cross-entropy over reference tokens, averaged over all tokens of the whole batch.

    Args:
        new_logprobs: (T,) log-probs of the reference tokens, with gradient.
        totals: counts over the whole batch, all micro-batches and ranks.

    Returns:
        The contribution to the batch loss (scalar), and the metrics `nll` and `tokens`, both sums.
    """
    nll = -new_logprobs.sum()
    tokens = torch.tensor(float(len(new_logprobs)), dtype=torch.float64, device=nll.device)
    return nll / totals.tokens, {"nll": nll.detach().double(), "tokens": tokens}


def supervised_loss(
    policy: Policy,
    output: PolicyOutput,
    batch: PackedBatch,
    totals: BatchTotals,
    ctc_weight: float,
    blank: int,
    audio: Mapping[int, EncodedAudio],
) -> tuple[torch.Tensor, Metrics]:
    """A micro-batch's part of the cross-entropy, with the auxiliary CTC loss where the policy has its head.

    Args:
        ctc_weight: of the CTC loss.
        blank: id of CTC's blank.
        audio: encoded audio by index, for CTC's targets.
    """
    loss, metrics = sft_loss(output.logprobs, totals)
    if policy.ctc is not None and batch.heard:
        used = sorted(set(batch.heard))
        ctc = ctc_loss(policy.ctc, output.encoder_states, [audio[i].ctc_ids for i in used], blank)
        loss = loss + ctc_weight * ctc / totals.tokens
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
