"""One rank of the learner group: a plain class, run by a Ray actor, a test or a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from learner import checkpoint
from learner.batch import PackedBatch, Sample, TrainGroup
from learner.config import LearnerConfig
from learner.metrics import StepMetrics
from learner.objectives import MicroBatchKind, UpdateContext, micro_batch_loss
from learner.packing import pack, split_micro_batches
from learner.plan import RankShare
from learner.policy import PARTS, Policy, Processing
from learner.schedule import learning_rate
from speech.families import load_family
from speech.records import EncodedAudio, PromptLayout
from speech.weights import WeightBucket, tensor_digest


@dataclass(frozen=True, slots=True)
class RankSpec:
    """Everything that a rank must be told once.

    Attributes:
        model, family: checkpoint folder and registry name (None: by `model_type`).
        objective: `grpo` or `sft`.
        temperature, min_new_tokens, stop_ids: the sampler's, so that log-probs agree.
        total_steps: of the run, for the learning-rate schedule.
        replay_weight: of the SFT replay loss.
        seed: run seed; only augmentation draws random numbers.
    """

    model: str
    family: str | None
    objective: str
    config: LearnerConfig
    temperature: float
    min_new_tokens: int
    stop_ids: tuple[int, ...]
    total_steps: int
    replay_weight: float
    seed: int

    @property
    def sampler(self) -> Processing:
        """What the engine does to the logits of a rollout."""
        return Processing(self.temperature, self.min_new_tokens, self.stop_ids)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step's updates reported.

    Attributes:
        metrics: means and maxima over all tokens of the step.
        sample_gaps: by audio index, the largest |learner − engine| log-prob of each sample, in nats.
    """

    metrics: dict[str, float]
    sample_gaps: dict[int, list[float]]


class LearnerRank:
    """Holds a shard of the policy and of the optimiser. Every public method is a collective: all ranks call it."""

    def __init__(self, spec: RankSpec, rank: int, world_size: int, init_method: str) -> None:
        """Join the process group and load the policy.

        Args:
            init_method: `tcp://host:port` or `file://path`, where the ranks meet.

        Raises:
            UserError: the model folder is incomplete.
        """
        self.spec, self.rank, self.world_size = spec, rank, world_size
        config = spec.config
        torch.set_num_threads(config.threads)
        self.device = torch.device("cuda", 0) if config.gpus_per_rank > 0 else torch.device("cpu")
        cuda = self.device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=init_method,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=config.step_timeout_s),
        )
        self.mesh = init_device_mesh(self.device.type, (world_size,))
        self.mixed_precision = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
            if cuda
            else MixedPrecisionPolicy()
        )
        self.family = load_family(spec.model, spec.family)
        self.policy = self._load(config.train, ctc=config.ctc_weight > 0)
        # Coefficient 0 loads no reference policy at all.
        self.reference = self._load([]) if spec.objective == "grpo" and config.loss.kl_coef > 0 else None
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim >= 2]
        vectors = [p for p in trained if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
        )

    def _load(self, train: Sequence[str], ctc: bool = False) -> Policy:
        policy = Policy.load(self.family, train, torch.float32, ctc).to(self.device)
        policy.shard(self.mesh, self.mixed_precision, self.spec.config.activation_checkpointing and bool(train))
        return policy

    # -- training ------------------------------------------------------------------------------------------------

    def update(self, step: int, shares: Sequence[RankShare], audio: Mapping[int, EncodedAudio]) -> StepResult:
        """Run a step's optimiser updates.

        Args:
            step: 1-based step of the run, for the schedule.
            shares: this rank's part of each update, from `plan_updates`.
            audio: encoded audio by index; at least what `audio_of(shares)` names.

        Returns:
            Reduced over ranks, equal on all of them.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are left as they were.
        """
        rate = self._rate(step)
        metrics = StepMetrics()
        prepared = [self._prepare(share, audio, several=len(shares) > 1) for share in shares]
        for share, micro_batches in zip(shares, prepared, strict=True):
            self.optimiser.zero_grad(set_to_none=True)
            for context in micro_batches:
                context.step = step
                loss, sums = micro_batch_loss(self.policy, context, share, self.spec, audio)
                # The loss is divided by the global counts already; FSDP2 averages gradients over ranks, which this
                # undoes (its own divide factor is not available with gloo).
                (loss * self.world_size).backward()
                if context.kind != "spare":
                    metrics.add(context.kind, sums)
                if context.sample_gaps is not None:
                    metrics.add_gaps(context.batch, context.sample_gaps)
            metrics.grad_norm = max(metrics.grad_norm, self._apply(rate))
        return StepResult({**metrics.result(), "learner/lr": rate}, metrics.sample_gaps())

    def _rate(self, step: int) -> float:
        config = self.spec.config
        return learning_rate(
            step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            total_steps=self.spec.total_steps,
            decay=config.decay,
            floor=config.lr_floor,
            decay_steps=config.decay_steps,
        )

    def _apply(self, rate: float) -> float:
        trained = [p for p in self.policy.parameters() if p.grad is not None]
        limit = self.spec.config.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(trained, limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()}; the weights were not changed")
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return float(norm)

    def _prepare(self, share: RankShare, audio: Mapping[int, EncodedAudio], several: bool) -> list[UpdateContext]:
        """Pack this rank's groups, equally many micro-batches on every rank, with old and reference log-probs."""
        config = self.spec.config
        budget, shared = config.micro_batch_tokens, config.shared_prefix
        parts: tuple[tuple[MicroBatchKind, tuple[TrainGroup, ...]], ...]
        parts = (("policy", share.groups), ("replay", share.replay))
        contexts = [
            UpdateContext(pack(part, shared), kind=kind)
            for kind, groups in parts
            for part in split_micro_batches(list(groups), budget, shared)
        ]
        count = torch.tensor(len(contexts), device=self.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        spare = pack([share.spare], shared)
        contexts += [UpdateContext(spare, kind="spare") for _ in range(int(count) - len(contexts))]
        for context in contexts:
            # Every rank must take part in these forward passes, with the spare micro-batches too.
            sampler = self.spec.sampler if context.kind == "policy" else Processing()
            if self.reference is not None:
                context.reference_logprobs = self._logprobs(self.reference, context.batch, audio, sampler)
            if several:
                context.old_logprobs = self._logprobs(self.policy, context.batch, audio, sampler)
        return contexts

    @torch.no_grad()
    def _logprobs(
        self, policy: Policy, batch: PackedBatch, audio: Mapping[int, EncodedAudio], sampler: Processing
    ) -> torch.Tensor:
        return policy(batch, audio, sampler, self.spec.config.logits_chunk).logprobs

    # -- publication ---------------------------------------------------------------------------------------------

    def weight_buckets(self, dtype: torch.dtype, bucket_bytes: int) -> Iterator[WeightBucket]:
        """Stream the language model as full tensors under the engine's names; rank 0 yields, the others only gather.

        The shard is cast before it is gathered, so that half-precision weights cross the network at half the size.
        """
        tensors: dict[str, torch.Tensor] = {}
        size = 0
        for name, parameter in self.policy.language_model.named_parameters():
            tensor = _full(parameter.detach().to(dtype))
            if self.rank != 0:
                continue
            # A copy even when nothing was gathered or cast: the optimiser changes the original in place.
            tensors[self.family.engine_name(name)] = tensor.to("cpu", copy=True).contiguous()
            size += tensor.numel() * tensor.element_size()
            if size >= bucket_bytes:
                yield WeightBucket(tensors, {n: tensor_digest(t) for n, t in tensors.items()})
                tensors, size = {}, 0
        if tensors:
            yield WeightBucket(tensors, {n: tensor_digest(t) for n, t in tensors.items()})

    def front_states(self) -> dict[str, dict[str, torch.Tensor]]:
        """Full weights of the parts before the language model that learn, for the encoder actors; often empty."""
        return {
            part: {name: _full(p.detach()).cpu().clone() for name, p in getattr(self.policy, part).named_parameters()}
            for part in ("adaptor", "encoder")
            if part in self.spec.config.train
        }

    @torch.no_grad()
    def probe_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """log P(token_ids[i] | token_ids[:i]) for i ≥ 1 at temperature 1 without masks, for a `Probe`."""
        layout = PromptLayout(tuple(token_ids[:1]), 0, 0)
        sample = Sample(tuple(token_ids[1:]), (), 0.0)
        batch = pack([TrainGroup(layout, (sample,), audio=-1)])
        batch.audio = ()
        return self.policy(batch, {}, Processing(), self.spec.config.logits_chunk).logprobs.tolist()

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, folder: str) -> None:
        """Write policy and optimiser shards (DCP) and a Hugging Face export below `folder`."""
        checkpoint.save(Path(folder) / "dcp", self.policy, self.optimiser)
        self.export(str(Path(folder) / "hf"))

    def load(self, folder: str) -> None:
        checkpoint.load(Path(folder) / "dcp", self.policy, self.optimiser)

    def export(self, folder: str) -> None:
        """Write the whole model in its family's own Hugging Face form (rank 0 writes)."""
        states: dict[str, dict[str, torch.Tensor]] = {}
        for part in (*PARTS, "ctc"):
            module = getattr(self.policy, part)
            if module is not None:
                states[part] = {name: _full(p.detach()).cpu() for name, p in module.named_parameters()}
        if self.rank == 0:
            self.family.export(Path(folder), states)
        dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
