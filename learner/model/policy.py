"""The policy: the trained parts of a speech LM under FSDP2, and its log-probs on packed batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from learner.batches.batch import PackedBatch
from learner.components.optimiser import shard
from learner.model.fidelity import check_language_model, logits_factor
from learner.model.logprobs import selected_logprobs
from learner.model.sampler import SamplerSettings
from speech.errors import UserError
from speech.families import AudioEncoder, ModelFamily
from speech.families.base import LanguageModelFamily
from speech.records import EncodedAudio

PARTS = ("language_model", "adaptor", "encoder")


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """Per trained token of a packed batch, in its order.

    Attributes:
        logprobs: (T,) float32, of the targets, after the sampler's temperature and masks.
        entropy: (T,) float32, without gradient.
        encoder_states: the batch's encoder outputs, one (states, encoder_hidden) tensor per distinct audio;
            only when the policy owns the encoder.
        hidden: (T, H) final hidden state that predicts each target, scaled so that its product with the output layer
            is the logits.
        output_layer: hidden states → logits. A module, because FSDP2 leaves a hook for the backward pass on each
            tensor that a forward returns: on a parameter they would never go away, and each costs time.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor
    encoder_states: list[torch.Tensor]
    hidden: torch.Tensor
    output_layer: nn.Module

    @property
    def head(self) -> torch.Tensor:
        """(V, H) weight of the output layer. It holds its values until the backward pass has run, because FSDP2 does
        not reshard the root group after its forward."""
        return self.output_layer.weight


class Policy(nn.Module):
    """Language model plus whatever else learns. One forward pass per micro-batch, so that FSDP2's hooks, which
    gather parameters at the start of a forward and free them at its end, see an ordinary module.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        adaptor: nn.Module | None = None,
        encoder: AudioEncoder | None = None,
        ctc: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.adaptor = adaptor
        self.encoder = encoder
        self.ctc = ctc

    @classmethod
    def load(
        cls,
        family: LanguageModelFamily,
        train: Sequence[str],
        dtype: torch.dtype,
        ctc: bool = False,
        frozen: bool = False,
    ) -> Policy:
        """The parts that learn, on CPU. A frozen adaptor is not loaded: the encoder actor runs it.

        An encoder that learns needs its adaptor here too, trained or not.

        Args:
            train: the parts that learn.
            ctc: with the family's auxiliary CTC head.
            frozen: a reference policy: the same parts, none of which learns. It needs an adaptor of its own where the
                policy trains one, because the embeddings sent along come from the trained adaptor.

        Raises:
            UserError: the checkpoint lacks a file, a part is to be trained that this family does not have, or the
                language model is of a form that the learner does not compute.
        """
        if not isinstance(family, ModelFamily) and {"adaptor", "encoder"} & set(train):
            raise UserError(f"learner.train: models of the family {family.name!r} have neither adaptor nor encoder")
        language_model = family.load_language_model(dtype)
        check_language_model(language_model, family.path)
        with_encoder = "encoder" in train
        policy = cls(language_model)
        if isinstance(family, ModelFamily):
            policy.adaptor = family.load_adaptor(dtype) if with_encoder or "adaptor" in train else None
            policy.encoder = family.load_encoder(dtype) if with_encoder else None
            policy.ctc = family.ctc_head() if ctc else None
        for part in PARTS:
            module = getattr(policy, part)
            if module is not None:
                module.requires_grad_(part in train and not frozen)
        # eval() everywhere: dropout must be off, or the learner's log-probs are not the engine's.
        return policy.eval()

    def shard(self, mesh: DeviceMesh, mixed_precision: MixedPrecisionPolicy, checkpoint_layers: bool) -> None:
        """Apply FSDP2 in place: one parameter group per decoder layer, the rest in the root group."""
        layers = self.language_model.base_model.layers
        for layer in layers:
            if checkpoint_layers:
                # Not transformers' own way, which acts in training mode only, and ours is eval mode: dropout is off.
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        shard(self, layers, mesh, mixed_precision)

    def audio_embeddings(self, audio: Sequence[EncodedAudio]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Embeddings of each item, through whichever of encoder and adaptor learns, and the encoder's states."""
        device = self.language_model.get_input_embeddings().weight.device
        if self.adaptor is None:
            return [_present(a.embeddings, "embeddings").to(device) for a in audio], []
        if self.encoder is None:
            states = [_present(a.encoder_states, "encoder states") for a in audio]
            return [self.adaptor(_like(self.adaptor, s)) for s in states], []
        states = self.encoder([_like(self.encoder, _present(a.features, "features")) for a in audio])
        return [self.adaptor(s) for s in states], states

    def forward(
        self, batch: PackedBatch, audio: Mapping[int, EncodedAudio], sampler: SamplerSettings, chunk: int
    ) -> PolicyOutput:
        """Log-probs of a packed batch's targets.

        Args:
            batch: packed micro-batch of N positions and T targets.
            audio: encoded audio by index; at least the indices of `batch.heard`.
            sampler: the sampler's own, so that both sides compute the same distribution.
            chunk: targets whose logits are in memory at a time.
        """
        language_model = self.language_model
        device = language_model.get_input_embeddings().weight.device
        used = sorted(set(batch.heard))
        embeddings, states = self.audio_embeddings([audio[i] for i in used]) if used else ([], [])
        row = {index: embeddings[place] for place, index in enumerate(used)}
        embeds = language_model.get_input_embeddings()(batch.input_ids.to(device))
        if used:
            sound = torch.cat([row[index] for index in batch.heard]).to(embeds.dtype)
            embeds = embeds.index_copy(0, batch.audio_positions.to(device), sound)
        if torch.is_grad_enabled() and not embeds.requires_grad:
            # A frozen language model without audio depends on nothing that learns. Its backward pass must run all the
            # same: other ranks, which have audio, gather the layers' parameters in theirs. Nor may it end above the
            # first layers, which have no adapter, on ranks whose audio learns nothing and only there.
            embeds.requires_grad_()
        hidden = language_model.base_model(
            inputs_embeds=embeds[None],
            position_ids=batch.position_ids[None].to(device),
            use_cache=False,
            blocks=batch.blocks,
        ).last_hidden_state[0]
        hidden = hidden[batch.predict_from.to(device)]
        factor = logits_factor(language_model.config)
        if factor != 1:
            hidden = hidden * factor
        output_layer = language_model.get_output_embeddings()
        head = output_layer.weight
        logprobs, entropy = selected_logprobs(
            hidden,
            head,
            batch.targets.to(device),
            temperature=sampler.temperature,
            allowed=sampler.allowed_mask(len(head), device),
            min_new_tokens=sampler.min_new_tokens,
            stop_ids=sampler.stop_ids,
            step_of=batch.step_of.to(device),
            chunk=chunk,
        )
        return PolicyOutput(logprobs, entropy, states, hidden, output_layer)


def _like(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """To the device and type in which the module computes (under mixed precision not those of its shards)."""
    parameter = next(module.parameters())
    return tensor.to(parameter.device, parameter.dtype)


def _present(tensor: torch.Tensor | None, what: str) -> torch.Tensor:
    if tensor is None:
        raise ValueError(f"encoded audio lacks {what}: the encoder actors run in another mode than the learner")
    return tensor
