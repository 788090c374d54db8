"""The objective `token2text`: one rank that trains the reward model of DiffRO, under the learner's own machinery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from learner.components import checkpoint
from learner.components.optimiser import RankContext, adamw, apply_update, scheduled_rate, shard
from learner.config import LearnerConfig, Token2TextTrainingConfig
from learner.metrics import Metrics, StepMetrics
from learner.token2text.model import UNKNOWN, Mixture, Token2Text, Token2TextConfig, Token2TextOutput, attribute_nll
from learner.token2text.plan import MixedItem, Prediction, SpeechText, Token2TextShare, split_items


@dataclass(frozen=True, slots=True)
class Token2TextSpec:
    """Everything that a rank must be told once.

    Attributes:
        start: folder of the model to start from, or the shape of a new one.
        config: the learner's; of its sections only those on optimisation and hardware matter here.
        training: loss and robustness.
        total_steps: of the run, for the schedule.
        seed: run seed; a new model's weights derive from it.
        features: `Codec.features`, from which a new model's embedding starts; None starts at random.
    """

    start: str | Token2TextConfig
    config: LearnerConfig
    training: Token2TextTrainingConfig
    total_steps: int
    seed: int
    features: np.ndarray | None = None

    def shape(self) -> Token2TextConfig:
        """Of the model, wherever it starts.

        Raises:
            UserError: the folder to start from has no usable `config.json`.
        """
        return Token2TextConfig.load(self.start) if isinstance(self.start, str) else self.start


class Token2TextRank:
    """Holds a shard of the reward model and of its optimiser. Every public method is a collective."""

    def __init__(self, spec: Token2TextSpec, rank: int, world_size: int, init_method: str) -> None:
        """Join the process group and load or create the model.

        Raises:
            UserError: the folder to start from is incomplete.
        """
        self.spec, self.rank, self.world_size = spec, rank, world_size
        self.context = RankContext(spec.config, rank, world_size, init_method)
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)  # the same on every rank: sharding keeps each rank's part
            model = Token2Text.load(spec.start) if isinstance(spec.start, str) else Token2Text(spec.start).eval()
            if spec.features is not None:
                model.init_embedding_from_codec(torch.from_numpy(spec.features))
        self.model = model.to(self.context.device)
        shard(self.model, self.model.layers, self.context.mesh, self.context.mixed_precision)
        self.optimiser = adamw(self.model, spec.config)
        self.writer = checkpoint.Writer()

    def update(self, step: int, share: Token2TextShare) -> dict[str, float]:
        """One optimiser update.

        Args:
            step: 1-based step of the run, for the schedule.
            share: this rank's part, from `plan_token2text`.

        Returns:
            Metrics over all ranks: `learner/nll` per label of the texts that fit into their frames, the share of texts
            that do not, per attribute the share of correct classes.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are left as they were.
        """
        rate = scheduled_rate(self.spec.config, step, self.spec.total_steps)
        self.optimiser.zero_grad(set_to_none=True)
        metrics = StepMetrics()
        batches = split_items(share.items, self.spec.config.micro_batch_tokens)
        missing = self.context.all_reduce_max(len(batches)) - len(batches)
        for items in batches:
            metrics.add(self._backward(items, share, 1.0))
        for _ in range(missing):
            self._backward([share.dummy], share, 0.0)
        metrics.grad_norm = apply_update(self.model, self.optimiser, self.spec.config, rate)
        return {**metrics.result(), "learner/lr": rate}

    @torch.no_grad()
    def predict(self, items: Sequence[SpeechText], dummy: SpeechText) -> list[Prediction]:
        """Judge utterances without learning from them.

        Args:
            items: this rank's part, longest first; possibly empty.
            dummy: what a rank with fewer batches computes instead.

        Returns:
            One prediction each, in order.
        """
        batches = split_items([MixedItem(item, item, 1.0) for item in items], self.spec.config.micro_batch_tokens)
        missing = self.context.all_reduce_max(len(batches)) - len(batches)
        predictions: list[Prediction] = []
        for batch in batches:
            output = self._forward(batch, None)
            nlls = -output.text_log_likelihood([mixed.item.text_ids for mixed in batch])
            classes = [logits.argmax(1).tolist() for logits in output.attributes]
            predictions += [
                Prediction(nll, labels, tuple(row[i] for row in classes))
                for i, (nll, labels) in enumerate(zip(nlls.tolist(), output.greedy_labels(), strict=True))
            ]
        for _ in range(missing):
            self._forward([MixedItem(dummy, dummy, 1.0)], None)
        return predictions

    def _backward(self, items: Sequence[MixedItem], share: Token2TextShare, weight: float) -> dict[str, Metrics]:
        """Accumulate the gradient of a micro-batch; with `adversarial`, half of it at the worst nearby embeddings.

        The direction in which the loss grows fastest comes out of the backward pass that is made anyway (Miyato et
        al., "Adversarial training methods for semi-supervised text classification", 1605.07725).
        """
        radius = self.spec.training.adversarial
        # FSDP2 averages gradients over ranks, which the factor undoes.
        scale = weight * self.world_size * (0.5 if radius > 0 else 1.0)
        output = self._forward(items, None)
        output.embedded.retain_grad()
        loss, metrics = self._loss(output, items, share)
        (loss * scale).backward()
        if radius > 0:
            slope = output.embedded.grad
            assert slope is not None
            # What stands behind an utterance's end depends on the others of its micro-batch.
            lengths = output.frames // self.model.config.labels_per_token
            present = torch.arange(slope.shape[1], device=lengths.device)[None, :] < lengths[:, None]
            size = output.embedded.detach() * present[:, :, None]
            norms = [tensor.flatten(1).norm(dim=1).clamp(min=1e-30)[:, None, None] for tensor in (slope, size)]
            shifted = self._forward(items, radius * norms[1] * slope / norms[0])
            (self._loss(shifted, items, share)[0] * scale).backward()
        return metrics

    def _forward(self, items: Sequence[MixedItem], shift: torch.Tensor | None) -> Token2TextOutput:
        device = self.context.device
        length = max(item.length for item in items)
        mixed = None
        if any(item.share < 1 for item in items):
            others = [item.partner if item.share < 1 else item.item for item in items]
            mixed = Mixture(
                _padded([other.tokens for other in others], length).to(device),
                torch.tensor([len(other.tokens) for other in others], device=device),
                torch.tensor([item.share for item in items], device=device),
            )
        return self.model(
            _padded([item.item.tokens for item in items], length).to(device),
            torch.tensor([len(item.item.tokens) for item in items], device=device),
            mixed=mixed,
            shift=shift,
        )

    def _loss(
        self, output: Token2TextOutput, items: Sequence[MixedItem], share: Token2TextShare
    ) -> tuple[torch.Tensor, dict[str, Metrics]]:
        """The micro-batch's part of the loss: −log P(text) per label, and the attributes' cross-entropy per sample."""
        training = self.spec.training
        loss = output.log_probs.new_zeros(())
        for weights, utterances in (
            ([item.share for item in items], [item.item for item in items]),
            ([1 - item.share for item in items], [item.partner for item in items]),
        ):
            if not any(weights):
                continue
            texts = [utterance.text_ids for utterance in utterances]
            possible = output.possible(texts)
            nll = torch.where(possible, -output.text_log_likelihood(texts), 0.0)
            if training.label_smoothing > 0:
                labels = torch.tensor([len(text) for text in texts], device=nll.device)
                smooth = torch.where(possible, labels * _distance_from_uniform(output), 0.0)
                nll = (1 - training.label_smoothing) * nll + training.label_smoothing * smooth
            terms = nll / (share.labels or 1.0)  # without a text that fits there is only attributes' loss
            if self.model.config.attributes and training.attributes > 0:
                classes = attribute_nll(output, [u.attributes for u in utterances], training.label_smoothing)
                terms = terms + training.attributes * classes / share.samples
            loss = loss + (terms * torch.tensor(weights, device=terms.device)).sum()
        return loss, self._metrics(output, items)

    @torch.no_grad()
    def _metrics(self, output: Token2TextOutput, items: Sequence[MixedItem]) -> dict[str, Metrics]:
        """Sums over the utterances, not their partners; mixed ones look harder than they are."""
        texts = [item.item.text_ids for item in items]
        possible = output.possible(texts)
        labels = torch.tensor([len(text) for text in texts], device=possible.device)
        found: dict[str, Metrics] = {
            "learner": {
                "tokens": labels.sum(),
                "nll": torch.where(possible, -output.text_log_likelihood(texts), 0.0).sum(),
                "nll_count": (labels * possible).sum(),
                "impossible": (~possible).sum(),
                "impossible_count": torch.tensor(len(texts)),
            }
        }
        for index, (name, logits) in enumerate(zip(self.model.config.attributes, output.attributes, strict=True)):
            wanted = torch.tensor([item.item.attributes[index] for item in items], device=logits.device)
            known = wanted != UNKNOWN
            found[f"attributes/{name}"] = {
                "samples": known.sum(),
                "correct": ((logits.argmax(1) == wanted) & known).sum(),
            }
        return found

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, folder: str, background: bool = False, copy: bool = True) -> None:
        """Write shards of model and optimiser (DCP) and the model in its own form below `folder`.

        Args:
            background, copy: see `LearnerRank.save`.

        Raises:
            UserError: the disk refuses, now or at the checkpoint before.
        """
        self.writer.save(Path(folder), self.model, self.optimiser, self.model.save, background, copy)

    def saved(self) -> bool:
        """Whether the checkpoint of `save` is written, as far as this rank goes. No collective; does not wait.

        Raises:
            UserError: the disk refused.
        """
        return self.writer.done()

    def load(self, folder: str) -> None:
        checkpoint.load(Path(folder) / "dcp", self.model, self.optimiser)

    def close(self) -> None:
        self.writer.close()
        dist.destroy_process_group()


def _padded(rows: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    return torch.tensor([[*row[:length], *[0] * (length - len(row))] for row in rows])


def _distance_from_uniform(output: Token2TextOutput) -> torch.Tensor:
    """(B,) cross-entropy of the uniform distribution against the model's labels, mean over valid frames, in nats."""
    valid = torch.arange(output.log_probs.shape[1], device=output.frames.device)[None, :] < output.frames[:, None]
    return -(output.log_probs.mean(2) * valid).sum(1) / output.frames
