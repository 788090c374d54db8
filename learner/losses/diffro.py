"""DiffRO: the reward's own gradient, through a relaxation of the sampled speech tokens (2507.05911, 2509.18569 §3).

The policy's distribution at every position of a sampled trajectory comes from the one parallel forward pass that GRPO
makes too. Straight-through Gumbel one-hots over the speech tokens go into a frozen Token2Text model, and
−log P(Y | U) is differentiated into the policy. A one-hot is only ever needed as its product with the reward model's
embedding table, (T, V)·(V, D), which is computed chunk by chunk and recomputed in the backward pass: memory grows
with chunk × V, not T × V.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from learner.batches.batch import BatchTotals, PackedBatch
from learner.batches.filters import is_chosen
from learner.config import DiffROConfig
from learner.losses.gumbel import conditional_noise, gumbel_noise, position_keys, soft_one_hot, straight_through
from learner.metrics import Metrics
from learner.model.logprobs import full_precision
from learner.model.policy import PolicyOutput
from learner.spec import RankSpec, uses_diffro
from learner.token2text.model import Token2Text, Token2TextConfig, attribute_nll
from speech.errors import UserError


def frames_per_token(spec: RankSpec) -> int:
    """`labels_per_token` of the reward model; 1 where there is none.

    Raises:
        UserError: its `config.json` is missing or damaged.
    """
    folder = spec.config.diffro.reward_model
    return Token2TextConfig.load(folder).labels_per_token if uses_diffro(spec) and folder is not None else 1


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """The speech tokens of the chosen samples of a packed batch.

    Attributes:
        samples: indices of the chosen samples in the batch.
        rows: (R,) their targets' indices in the batch, sample by sample, stop tokens left out.
        lengths: speech tokens of each chosen sample; they add up to R.
        keys: (R,) noise key of each position.
    """

    samples: list[int]
    rows: torch.Tensor
    lengths: list[int]
    keys: torch.Tensor


def choose_rows(batch: PackedBatch, sample_filter: str, seed: int, step: int) -> ChosenRows:
    """Apply the sample filter to a packed batch, on the CPU."""
    starts = [0, *batch.sample_lengths.cumsum(0).tolist()]
    samples: list[int] = []
    lengths: list[int] = []
    rows: list[int] = []
    groups: list[int] = []
    members: list[int] = []
    for index, (group, place) in enumerate(batch.members):
        sample = group.samples[place]
        if not is_chosen(sample, sample_filter):
            continue
        length = sample.speech_tokens
        samples.append(index)
        lengths.append(length)
        rows += range(starts[index], starts[index] + length)
        groups += [group.audio] * length
        members += [place] * length
    where = torch.tensor(rows, dtype=torch.long)
    of_group = torch.tensor(groups, dtype=torch.long)
    of_member = torch.tensor(members, dtype=torch.long)
    keys = position_keys(seed, step, of_group, of_member, batch.step_of[where])
    return ChosenRows(samples, where, lengths, keys)


def speech_embeddings(
    hidden: torch.Tensor,
    head: torch.Tensor,
    sampled: torch.Tensor,
    table: torch.Tensor,
    keys: torch.Tensor,
    *,
    sampler_temperature: float,
    temperature: float,
    noise: str,
    chunk: int,
) -> torch.Tensor:
    """Reward-model embeddings of relaxed speech tokens.

    At each position the policy's distribution over the *speech* tokens (the stop token left out, the rest
    renormalised: the trajectory did go on here) is perturbed with Gumbel noise. The forward pass shows the winning
    token, the backward pass the softmax.

    Args:
        hidden: (R, H) with gradient.
        head: (V, H) rows of the output layer, one per codec token.
        sampled: (R,) codec token of the trajectory.
        table: (V, D) embeddings of the reward model.
        keys: (R,) noise key of each position.
        sampler_temperature: of the distribution that was sampled.
        temperature: τ of the Gumbel-Softmax.
        noise: `fresh`: the winner is a new draw at each position, given the sampled tokens before it; `conditional`:
            the winner is the sampled token itself (`conditional_noise`).
        chunk: positions whose distributions are in memory at a time, ≥ 1.

    Returns:
        (R, D), of the table's type.
    """
    if noise not in ("fresh", "conditional"):
        raise ValueError(f"unknown noise {noise!r}; known: fresh, conditional")
    embed = _chunk_embeddings if len(hidden) <= chunk else _recomputed
    parts = [
        embed(
            hidden[rows],
            head,
            sampled[rows],
            table,
            keys[rows],
            sampler_temperature,
            temperature,
            noise == "conditional",
        )
        for rows in (slice(start, start + chunk) for start in range(0, len(hidden), chunk))
    ]
    return torch.cat(parts)


def _chunk_embeddings(
    hidden: torch.Tensor,
    head: torch.Tensor,
    sampled: torch.Tensor,
    table: torch.Tensor,
    keys: torch.Tensor,
    sampler_temperature: float,
    temperature: float,
    conditional: bool,
) -> torch.Tensor:
    logprobs = (full_precision(F.linear(hidden, head)) / sampler_temperature).log_softmax(1)
    noise = gumbel_noise(keys, len(head)).to(logprobs.dtype)
    if conditional:
        noise, tokens = conditional_noise(logprobs, noise, sampled), sampled
    else:
        tokens = (logprobs.detach() + noise).argmax(1)
    return straight_through(soft_one_hot(logprobs, noise, temperature).to(table.dtype), tokens, table)


# The noise is a function of its keys, so there is no generator state worth saving.
_recomputed = partial(checkpoint, _chunk_embeddings, use_reentrant=False, preserve_rng_state=False)


class DiffRO:
    """The frozen reward model and how its gradient reaches the policy. Every rank holds a whole copy: it is small."""

    def __init__(
        self, settings: DiffROConfig, reward_model: Token2Text, speech_ids: range, chunk: int, seed: int
    ) -> None:
        """Freeze the reward model.

        Args:
            speech_ids: ids of the codec's tokens in the policy's vocabulary.
            chunk: positions whose distributions are in memory at a time.
            seed: of the run.

        Raises:
            UserError: policy and reward model speak different codecs.
        """
        known = reward_model.config.speech_vocabulary
        if len(speech_ids) != known:
            raise UserError(
                f"learner.diffro.reward_model knows {known} speech tokens, but the policy speaks {len(speech_ids)}: "
                "they belong to different codecs"
            )
        self.settings, self.speech_ids, self.chunk, self.seed = settings, speech_ids, chunk, seed
        self.reward_model = reward_model.requires_grad_(False).eval()

    @classmethod
    def build(cls, spec: RankSpec, device: torch.device) -> DiffRO | None:
        """Load what the objective needs, or None when it needs nothing.

        Raises:
            UserError: no reward model is named, it cannot be read, or it is of another codec.
        """
        if not uses_diffro(spec):
            return None
        settings = spec.config.diffro
        if settings.reward_model is None:
            raise UserError(
                f"learner.diffro.reward_model: `objective: {spec.objective}` needs the folder of a Token2Text model"
            )
        model = Token2Text.load(settings.reward_model).to(device)
        return cls(settings, model, spec.speech_ids, spec.config.logits_chunk, spec.seed)

    def loss(
        self, output: PolicyOutput, batch: PackedBatch, totals: BatchTotals, sampler_temperature: float, step: int
    ) -> tuple[torch.Tensor, Metrics]:
        """A micro-batch's part of `−Σ log P(Y|U) / labels − w·Σ_i log P(A_i|U) / samples` over the chosen samples.

        Both counts are of the whole batch, so that parts add up over micro-batches and ranks. A text that does not fit
        into the frames of its speech has no likelihood: it is left out of sum and labels, and counted in `impossible`.

        Args:
            output: of the policy, with gradient.
            totals: counts over all micro-batches and ranks.
            sampler_temperature: of the distribution that was sampled.
            step: of the run, part of the noise's keys.

        Returns:
            The contribution (scalar), and metrics as sums over chosen samples; those of texts over the possible ones.

        Raises:
            ValueError: a chosen sample without a text, or a token of its speech that is none of the codec's.
        """
        device = output.hidden.device
        chosen = choose_rows(batch, self.settings.filter, self.seed, step)
        if not chosen.samples:
            return output.hidden.sum() * 0.0, {"samples": torch.zeros(())}
        groups = [batch.members[index][0] for index in chosen.samples]
        texts = [group.text_ids for group in groups]
        if not all(texts):
            raise ValueError("a group came without the text that DiffRO is to reward")
        speech = self.speech_ids
        sampled = batch.targets[chosen.rows] - speech.start
        if bool(((sampled < 0) | (sampled >= len(speech))).any()):
            raise ValueError("a sampled token is neither speech nor stop: the engine sampled without the mask")
        embedded = speech_embeddings(
            output.hidden[chosen.rows.to(device)],
            output.head[speech.start : speech.stop],
            sampled.to(device),
            self.reward_model.embedding.weight,
            chosen.keys.to(device),
            sampler_temperature=sampler_temperature,
            temperature=self.settings.temperature,
            noise=self.settings.noise,
            chunk=self.chunk,
        )
        lengths = torch.tensor(chosen.lengths, device=device)
        padded = torch.nn.utils.rnn.pad_sequence(list(embedded.split(chosen.lengths)), batch_first=True)
        judged = self.reward_model(None, lengths, embedded=padded)
        possible = judged.possible(texts)
        nll = -torch.where(possible, judged.text_log_likelihood(texts), 0.0)
        loss = nll.sum() / max(totals.chosen_labels, 1)  # all may be impossible
        lengths_of_texts = torch.tensor([len(text) for text in texts], device=device)
        metrics = {
            "samples": torch.tensor(len(texts)),
            "text_nll": nll.detach().sum(),
            "text_nll_count": possible.sum(),
            "labels": (lengths_of_texts * possible).sum(),
            "labels_count": possible.sum(),
            "impossible": (~possible).sum(),
        }
        if self.settings.attributes > 0:
            attributes = attribute_nll(judged, [group.attributes for group in groups])
            loss = loss + self.settings.attributes * attributes.sum() / totals.chosen_samples
            metrics["attribute_nll"] = attributes.detach().sum()
        return loss, metrics
