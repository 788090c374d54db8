"""The policy's language model outside of FSDP2, in a precision of its own: what a probe is computed with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from learner.batches.batch import PackedBatch
from learner.components.optimiser import full_tensor
from learner.model.lora import Weight
from learner.model.policy import Policy
from learner.model.sampler import SamplerSettings


class PolicyTwin:
    """Modules without weights, which borrow the policy's one layer at a time.

    FSDP2 computes in one precision, which it fixes before the first forward: bfloat16 on CUDA, float32 on CPU. An
    engine must be compared with both.
    """

    def __init__(self, policy: Policy) -> None:
        """Only the form of the policy is taken over, and the buffers that no checkpoint holds."""
        original = policy.language_model
        with torch.device("meta"):
            model = type(original)(original.config)
        for name, buffer in original.named_buffers():
            owner, _, attribute = name.rpartition(".")
            model.get_submodule(owner).register_buffer(attribute, buffer.clone(), persistent=False)
        self._policy = Policy(model).eval()
        self._gather: Callable[[str], torch.Tensor]
        self._root = _places(model)
        for layer in model.base_model.layers:
            mine = {id(parameter) for parameter in layer.parameters()}
            inside = {name: place for name, place in self._root.items() if id(_at(place[0])) in mine}
            self._root = {name: place for name, place in self._root.items() if name not in inside}
            layer.register_forward_pre_hook(lambda *_, places=inside: self._borrow(places))
            layer.register_forward_hook(lambda *_, places=inside: _give_back(places))

    @torch.no_grad()
    def logprobs(
        self,
        batch: PackedBatch,
        weights: Iterable[tuple[str, Weight]],
        published: torch.dtype,
        compute: torch.dtype,
        chunk: int,
    ) -> torch.Tensor:
        """Log-probs of a packed batch without audio, at temperature 1 and without masks. A collective.

        Args:
            weights: of the policy's language model, sharded.
            published: type in which the engines get the weights.
            compute: type in which they are computed with here.
            chunk: targets whose logits are in memory at a time.

        Returns:
            (T,) float32, in nats.
        """
        sharded = dict(weights)
        # As in a publication: the shard is cast before it is gathered.
        self._gather = lambda name: full_tensor(sharded[name].value().to(published)).to(compute)
        self._borrow(self._root)
        logprobs = self._policy(batch, {}, SamplerSettings(), chunk).logprobs
        _give_back(self._root)
        return logprobs

    def _borrow(self, places: Mapping[str, list[tuple[nn.Module, str]]]) -> None:
        for name, holders in places.items():
            parameter = nn.Parameter(self._gather(name), requires_grad=False)
            for module, attribute in holders:
                setattr(module, attribute, parameter)


def _places(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where each parameter stands; a tied one stands in two modules."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = defaultdict(list)
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            places[names[id(parameter)]].append((module, attribute))
    return dict(places)


def _at(place: tuple[nn.Module, str]) -> nn.Parameter:
    module, attribute = place
    parameter: nn.Parameter = getattr(module, attribute)
    return parameter


def _give_back(places: Mapping[str, list[tuple[nn.Module, str]]]) -> None:
    for holders in places.values():
        empty = nn.Parameter(_at(holders[0]).to("meta"), requires_grad=False)
        for module, attribute in holders:
            setattr(module, attribute, empty)
