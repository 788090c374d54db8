"""One rank of the learner group: a plain class, run by a Ray actor, a test or a notebook."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from learner.batches.batch import PackedBatch, Sample, TrainGroup
from learner.batches.packing import pack, split_micro_batches
from learner.batches.plan import RankShare
from learner.components import checkpoint
from learner.components.offload import DeviceOffloader
from learner.components.optimiser import (
    RankContext,
    adamw,
    apply_update,
    full_tensor,
    local_tensor,
    scheduled_rate,
    sharded_parameters,
)
from learner.components.transport import NOBODY, Outlet, Receivers
from learner.losses.diffro import DiffRO
from learner.losses.distillation import check_teacher, needs_teacher, teacher_family
from learner.losses.objectives import (
    MicroBatchKind,
    ReferenceOutput,
    UpdateContext,
    micro_batch_loss,
    needs_reference,
)
from learner.metrics import StepMetrics
from learner.model import attention, lora
from learner.model.policy import Policy, PolicyOutput
from learner.model.sampler import SamplerSettings
from learner.model.twin import PolicyTwin
from learner.spec import RankSpec, StepResult
from speech.families import LanguageModelFamily, load_family
from speech.families.checkpoint import LowRank
from speech.records import EncodedAudio, PromptLayout
from speech.runtime.hub import model_folder
from speech.runtime.shared_weights import Bucket
from speech.runtime.weights import WeightBucket


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
        self.context = RankContext(config, rank, world_size, init_method)
        self.device = self.context.device
        self.family = load_family(model_folder(spec.model), spec.family)
        self.policy = self._load(ctc=config.ctc_weight > 0)
        self.twin = PolicyTwin(self.policy)
        self.reference = self._load(frozen=True) if needs_reference(spec) and config.lora is None else None
        """None with adapters too: the policy with these switched off is its own reference."""
        self.teacher: Policy | None = None
        if needs_teacher(spec):
            self.teacher = self._load(frozen=True, family=teacher_family(spec, self.family))
            check_teacher(self.teacher, self.policy, self.family, config.loss.kl_estimator == "full")
        self.diffro = DiffRO.build(spec, self.device)
        self.optimiser = adamw(self.policy, config)
        self.accumulated = StepMetrics()
        """Of the step whose groups come one after the other."""
        self.outlet = Outlet(self.device)
        self.has_learned = False
        self.writer = checkpoint.Writer()
        reward_model = None if self.diffro is None else self.diffro.reward_model
        modules = (self.policy, self.reference, self.teacher, reward_model)
        held = [module for module in modules if module is not None]
        self.offloader = DeviceOffloader(self.device, held, self.optimiser, attention.forget_plans)

    def _load(self, ctc: bool = False, frozen: bool = False, family: LanguageModelFamily | None = None) -> Policy:
        config = self.spec.config
        policy = Policy.load(family or self.family, config.train, torch.float32, ctc, frozen)
        if config.lora is not None and not frozen:
            lora.inject(policy, config.lora, config.train, self.spec.seed)
        policy.to(self.device)
        policy.shard(self.context.mesh, self.context.mixed_precision, config.activation_checkpointing and not frozen)
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
        metrics = StepMetrics()
        prepared = [self._prepare(share, audio, several=len(shares) > 1) for share in shares]
        for share, micro_batches in zip(shares, prepared, strict=True):
            self.optimiser.zero_grad(set_to_none=True)
            self._backward(step, share, micro_batches, audio, metrics)
            self._apply(step, metrics)
        return self._result(step, metrics)

    def accumulate(self, step: int, share: RankShare, audio: Mapping[int, EncodedAudio], first: bool) -> None:
        """Add to the gradient of a step's only update what a part of its groups contributes; `finish` makes the update.

        Args:
            share: this rank's part, whose totals divide the loss.
            first: of the step.
        """
        if first:
            self.optimiser.zero_grad(set_to_none=True)
            self.accumulated = StepMetrics()
        self._backward(step, share, self._prepare(share, audio, several=False), audio, self.accumulated)

    def finish(
        self, step: int, divisor: int, replay: Sequence[RankShare], audio: Mapping[int, EncodedAudio]
    ) -> StepResult:
        """Make the update of a step whose groups have been accumulated.

        Args:
            divisor: of the gradient so far.
            replay: this rank's part of what is left of the step, with its own totals; one at most.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are left as they were.
        """
        for parameter in self.policy.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(divisor)
        for share in replay:
            self._backward(step, share, self._prepare(share, audio, several=False), audio, self.accumulated)
        self._apply(step, self.accumulated)
        return self._result(step, self.accumulated)

    def _backward(
        self,
        step: int,
        share: RankShare,
        micro_batches: Sequence[UpdateContext],
        audio: Mapping[int, EncodedAudio],
        metrics: StepMetrics,
    ) -> None:
        for context in micro_batches:
            context.step = step
            loss, sums = micro_batch_loss(self.policy, context, share, self.spec, audio, self.diffro)
            # The loss is divided by the global counts already; FSDP2 averages gradients over ranks, which this
            # undoes (its own divide factor is not available with gloo).
            (loss * self.world_size).backward()
            metrics.add(sums)
            if context.sample_gaps is not None:
                metrics.add_gaps(context.batch, context.sample_gaps)

    def _rate(self, step: int) -> float:
        return scheduled_rate(self.spec.config, step, self.spec.total_steps)

    def _apply(self, step: int, metrics: StepMetrics) -> None:
        norm = apply_update(self.policy, self.optimiser, self.spec.config, self._rate(step))
        metrics.grad_norm = max(metrics.grad_norm, norm)
        self.has_learned = True

    def _result(self, step: int, metrics: StepMetrics) -> StepResult:
        return StepResult({**metrics.result(), "learner/lr": self._rate(step)}, metrics.sample_gaps())

    def _prepare(self, share: RankShare, audio: Mapping[int, EncodedAudio], several: bool) -> list[UpdateContext]:
        """Pack this rank's groups, equally many micro-batches on every rank, with old and reference log-probs."""
        config = self.spec.config
        parts: tuple[tuple[MicroBatchKind, tuple[TrainGroup, ...]], ...]
        parts = (("policy", share.groups), ("replay", share.replay))
        contexts = [
            UpdateContext(pack(part), kind=kind)
            for kind, groups in parts
            for part in split_micro_batches(list(groups), config.micro_batch_tokens)
        ]
        dummy = pack([share.dummy])
        missing = self.context.all_reduce_max(len(contexts)) - len(contexts)
        contexts += [UpdateContext(dummy, kind="dummy") for _ in range(missing)]
        for context in contexts:
            # Every rank must take part in these forward passes, with the dummy micro-batches too.
            sampler = self.spec.sampler if context.kind == "policy" else SamplerSettings()
            full = config.loss.kl_estimator == "full"
            context.reference = self._refer(context.batch, audio, sampler, full)
            context.teacher = self._frozen(self.teacher, context.batch, audio, sampler, full)
            if several:
                context.old_logprobs = self._evaluate(self.policy, context.batch, audio, sampler).logprobs
        return contexts

    def _frozen(
        self,
        model: Policy | None,
        batch: PackedBatch,
        audio: Mapping[int, EncodedAudio],
        sampler: SamplerSettings,
        full: bool,
    ) -> ReferenceOutput | None:
        """What a frozen model says of a batch; with what the full KL needs, or with log-probs alone."""
        if model is None:
            return None
        output = self._evaluate(model, batch, audio, sampler)
        return ReferenceOutput(output.logprobs, *((output.hidden, output.head) if full else (None, None)))

    def _refer(
        self, batch: PackedBatch, audio: Mapping[int, EncodedAudio], sampler: SamplerSettings, full: bool
    ) -> ReferenceOutput | None:
        if self.reference is not None or not needs_reference(self.spec):
            return self._frozen(self.reference, batch, audio, sampler, full)
        with lora.switched_off(self.policy):
            return self._frozen(self.policy, batch, audio, sampler, full)

    @torch.no_grad()
    def _evaluate(
        self, policy: Policy, batch: PackedBatch, audio: Mapping[int, EncodedAudio], sampler: SamplerSettings
    ) -> PolicyOutput:
        return policy(batch, audio, sampler, self.spec.config.logits_chunk)

    # -- publication ---------------------------------------------------------------------------------------------

    def weight_buckets(
        self, dtype: torch.dtype, bucket_bytes: int, receivers: Receivers = NOBODY, node: str = ""
    ) -> Iterator[Bucket]:
        """Stream the language model as full tensors under the engine's names; rank 0 yields, the others only gather.

        The shard is cast before it is gathered, so that half-precision weights cross the network at half the size.

        What does not go through the object store stays where it is until the next publication: in the shared memory of
        this node, or, as one bucket, on this device.

        Args:
            receivers: the engines, for `choose`.
            node: hex id of this node.
        """
        weights = self._weights("language_model")
        if self.rank == 0:
            sizes = [weight.base.numel() * dtype.itemsize for _, weight in weights]
            if self.outlet.begin(receivers, node, sizes, self.has_learned) == "device memory":
                assert self.outlet.stage is not None
                yield self.outlet.stage.fill((name, tensor) for name, _, tensor in self._whole(weights, dtype))
                return
        for tensors in self._gathered(weights, dtype, bucket_bytes):
            bucket = WeightBucket.of(tensors)
            yield bucket if self.outlet.folder is None else self.outlet.folder.add(bucket)

    def _whole(
        self, weights: Sequence[tuple[str, lora.Weight]], dtype: torch.dtype
    ) -> Iterator[tuple[str, lora.Weight, torch.Tensor]]:
        """Each weight under the engine's name, with the full tensor; from rank 0 alone."""
        for name, weight in weights:
            tensor = full_tensor(weight.value().to(dtype))
            if self.rank == 0:
                yield self.family.engine_name(name), weight, tensor

    def _gathered(
        self, weights: Sequence[tuple[str, lora.Weight]], dtype: torch.dtype, bucket_bytes: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        tensors: dict[str, torch.Tensor] = {}
        size = 0
        for name, weight, tensor in self._whole(weights, dtype):
            # A copy even when nothing was gathered or cast, unless a file will be one: the optimiser changes the
            # original in place.
            own = tensor.is_cpu and tensor.data_ptr() == local_tensor(weight.base).data_ptr()
            uncopied = own and self.outlet.folder is None
            tensors[name] = tensor.to("cpu", copy=uncopied).contiguous()
            size += tensor.numel() * tensor.element_size()
            if size >= bucket_bytes:
                yield tensors
                tensors, size = {}, 0
        if tensors:
            yield tensors

    def frontend_weights(self) -> dict[str, WeightBucket]:
        """Full weights of the parts before the language model that learn, for the encoder actors; often empty."""
        found: dict[str, WeightBucket] = {}
        for part in ("adaptor", "encoder"):
            if part in self.spec.config.train:
                tensors = {name: full_tensor(weight.value()).cpu().clone() for name, weight in self._weights(part)}
                found[part] = WeightBucket.of(tensors)
        return found

    def _weights(self, part: str) -> list[tuple[str, lora.Weight]]:
        """A part's weights under the names that they have in it, with what adapters add to them."""
        prefix = f"{part}."
        found = lora.plain_weights(sharded_parameters(self.policy), self.spec.config.lora)
        return [(name.removeprefix(prefix), weight) for name, weight in found if name.startswith(prefix)]

    def adapter(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The language model's adapter: whole float32 tensors in host memory under peft's names, and its
        `adapter_config.json`. Equal on all ranks.

        Raises:
            ValueError: it has none.
        """
        config = self.spec.config.lora
        if config is None or "language_model" not in self.spec.config.train:
            raise ValueError("the language model has no adapter: learner.lora or learner.train says so")
        trained = {name: p.detach() for name, p in sharded_parameters(self.policy) if p.requires_grad}
        sharded = lora.adapter_tensors(trained, "language_model")
        tensors = {name: full_tensor(shard).cpu().clone() for name, shard in sharded.items()}
        return tensors, lora.adapter_config(tensors, config, self.spec.model)

    def probe_logprobs(
        self, sequences: Sequence[Sequence[int]], published: torch.dtype, compute: torch.dtype
    ) -> list[float]:
        """What a sound engine should answer to probes: log P(ids[i] | ids[:i]) for i ≥ 1 of each sequence in turn, in
        nats, at temperature 1 without masks.

        Args:
            published: type in which the engines get the weights.
            compute: type in which they are computed with.
        """
        groups = [
            TrainGroup(PromptLayout(tuple(ids[:1]), 0, 0), (Sample(tuple(ids[1:]), (), 0.0),), audio=-1)
            for ids in sequences
        ]
        weights = self._weights("language_model")
        chunk = self.spec.config.logits_chunk
        return self.twin.logprobs(pack(groups), weights, published, compute, chunk).tolist()

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, folder: str, background: bool = False, copy: bool = True) -> None:
        """Write policy and optimiser shards (DCP) and a Hugging Face export below `folder`.

        Args:
            background: return before they are on the disk; `saved` says when they are.
            copy: with `background`, copy the state first, so that training may go on. Without a copy nothing may change
                it until `saved`.

        Raises:
            UserError: the disk refuses, now or at the checkpoint before.
        """
        self.writer.save(Path(folder), self.policy, self.optimiser, self._export, background, copy)

    def _export(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        """The model in its family's own Hugging Face form; parts that are frozen are those that it began with. Adapters
        are added to its weights, and lie in a folder of their own besides."""
        config = self.spec.config.lora
        states: dict[str, dict[str, torch.Tensor | LowRank]] = defaultdict(dict)
        changed = tensors if config is None else lora.changes(tensors, config.factor * config.scale)
        for name, change in changed.items():
            part, _, inner = name.partition(".")
            states[part][inner] = change
        self.family.export(folder, states)
        if config is not None:
            lora.write_adapters(folder / lora.FOLDER, tensors, config, self.spec.model)

    def saved(self) -> bool:
        """Whether the checkpoint of `save` is written, as far as this rank goes. No collective; does not wait.

        Raises:
            UserError: the disk refused.
        """
        return self.writer.done()

    def load(self, folder: str) -> None:
        checkpoint.load(Path(folder) / "dcp", self.policy, self.optimiser)

    def close(self) -> None:
        self.writer.close()
        self.outlet.close()
        dist.destroy_process_group()
