"""What an engine holds after a load, against what was sent. Runs inside vLLM's workers.

Digests prove that the bytes arrived. vLLM then fuses matrices, cuts them for its ranks, ties heads and, on CPU, packs
copies that its kernels read in the place of the parameters. Each of these steps can leave old values behind without an
error. Here every parameter, and every packed copy, is compared with the tensors that it should have been made from.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from rollout.errors import listed

COLUMNS = 128
"""So many columns of a packed matrix are compared: all those of a small model. An old copy differs in any of them."""
_columns = torch.Generator()  # its own: torch's belongs to the sampler


def check_held(model: nn.Module, names: Iterable[str], read: Callable[[str], torch.Tensor]) -> None:
    """Compare each parameter of a vLLM model, and each packed copy of one, with the tensors of a publication.

    vLLM's own loaders run a second time, into one empty tensor after another. So fused matrices and the parts of a rank
    need no second description here, and no second model is in memory.

    Args:
        names: of all tensors that were sent, as in the checkpoint.
        read: gives a tensor by its name.

    Raises:
        ValueError: naming parameters that hold something else, and tensors that no parameter was made from.
    """
    sources = _sources(model, names)
    owners: dict[int, list[_Held]] = defaultdict(list)
    for held in _parameters(model):
        owners[id(held.parameter)].append(held)  # a tied head holds the parameter of the embedding
    faults = []
    for holders in owners.values():
        made_from = next((sources.pop(held.name) for held in holders if held.name in sources), [])
        expected = holders[0].empty()
        for name, place in made_from:
            _loader(expected)(expected, read(name).to(expected.device), *place)
        for held in holders:
            if not made_from:
                faults.append(f"nothing that was sent belongs into {held.name}")
            elif not held.equals(expected.data):
                faults.append(f"{held.name} does not hold {', '.join(name for name, _ in made_from)}")
    faults += [f"{name} was sent and has no place" for made_from in sources.values() for name, _ in made_from]
    if faults:
        raise ValueError(f"the engine does not hold the weights that were sent: {listed(faults)}")


def _sources(model: nn.Module, names: Iterable[str]) -> dict[str, list[tuple[str, tuple[Any, ...]]]]:
    """By parameter of vLLM's model: the tensors that it is made from, each with its place in a fused matrix (`q`)."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    sources: dict[str, list[tuple[str, tuple[Any, ...]]]] = defaultdict(list)
    for name in names:
        renamed = [(name, torch.empty(0))]
        for held, tensor in renamed if mapper is None else mapper.apply(renamed):
            sources[held].append((name, (tensor.shard_id,) if hasattr(tensor, "shard_id") else ()))
    return sources


@dataclass(frozen=True, slots=True)
class _Held:
    """A parameter as its module holds it.

    Attributes:
        empty: makes a tensor of the form in which vLLM loads it, loader included. The parameter itself is empty once it
            was packed.
    """

    name: str
    module: nn.Module
    parameter: torch.Tensor
    empty: Callable[[], torch.Tensor]

    def equals(self, expected: torch.Tensor) -> bool:
        """Whether what the kernels read has these values."""
        if self.parameter.numel() and not same_bits(self.parameter.to(expected.dtype), expected):
            return False
        packed = hasattr(self.module, "cpu_linear") and self.name.endswith(".weight")
        return _packed_equals(self.module, expected) if packed else bool(self.parameter.numel())


def _parameters(model: nn.Module) -> Iterator[_Held]:
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for prefix, module in model.named_modules():
        info = get_layerwise_info(module)
        forms = info.restore_metadata[0]
        for name, parameter in module.named_parameters(recurse=False):
            form = forms.get(name, parameter)
            empty = partial(_empty, form, module, parameter.device)
            yield _Held(f"{prefix}.{name}" if prefix else name, module, parameter, empty)


def _empty(form: torch.Tensor, module: nn.Module, device: torch.device) -> torch.Tensor:
    from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor
    from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

    with device:
        tensor = restore_layer_refs(materialize_meta_tensor(form), module)
    tensor.data.fill_(torch.nan)  # what a loader leaves out must not be right by accident
    return tensor


def _loader(tensor: torch.Tensor) -> Callable[..., Any]:
    """A tensor's own loader. The layer-wise reload leaves its wrapper, which loads nothing outside of a reload."""
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    loader: Callable[..., Any] = getattr(tensor, "weight_loader", default_weight_loader)
    return inspect.unwrap(loader, stop=lambda function: function.__name__ != "online_process_loader")


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, and where one is NaN the other is too: weights that are NaN are the probe's to refuse, with a reason."""
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _packed_equals(module: nn.Module, expected: torch.Tensor) -> bool:
    """Read a packed matrix through the kernel that uses it: a product with a column of the identity is exact."""
    width = expected.shape[1]
    columns = torch.randperm(width, generator=_columns)[:COLUMNS]
    inputs = torch.zeros(len(columns), width, dtype=expected.dtype)
    inputs[torch.arange(len(columns)), columns] = 1
    found = module.quant_method.apply(module, inputs).T
    different = (found != expected.index_select(1, columns)).any(1).nonzero()[:, 0]
    # A row with a NaN, or an infinity, answers NaN to every input.
    return not bool(expected[different].isfinite().all(1).any())
