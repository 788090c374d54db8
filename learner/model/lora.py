"""LoRA in the policy: W·x + (α/r)·B·A·x, where A and B learn and W does not (Hu et al. 2021, 2106.09685, §4.1).

The layers are peft's, put in the place of the linear layers that they hold: the modules around them, FSDP2's groups
among these, stay what they are. Everything outside of the policy sees plain names and plain weights W + (α/r)·B·A.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from learner.config import LoraConfig
from learner.model.policy import Policy
from speech.errors import UserError
from speech.families.checkpoint import LowRank

ADAPTED = ("language_model", "adaptor")
"""Parts that get adapters; an encoder learns in full."""
FOLDER = "adapter"
"""Of an export: the language model's adapter; the projector's is in `adaptor` below it."""
_PEFT = "base_model.model."
_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def inject(policy: Policy, config: LoraConfig, train: Sequence[str], seed: int) -> None:
    """Give the linear layers of the parts that learn an adapter each, in place; nothing else of these parts learns.

    B is 0, so that the policy begins as the model that it is built on, to the bit. A is drawn from `seed`: the same on
    every rank. To be called before FSDP2 is applied.

    Raises:
        UserError: peft is not installed, or the model has no layer of such a name.
    """
    try:
        import peft  # its import takes seconds
    except ImportError as error:
        raise UserError("learner.lora needs the package peft: pip install 'speechrl[lora]'") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in [part for part in ADAPTED if part in train]:
            # Some projectors are a linear layer themselves, which only a module around it can replace.
            holder = nn.ModuleDict({part: getattr(policy, part)})
            names = _targets(policy, part, config)
            settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, bias="none")
            peft.inject_adapter_in_model(settings, holder)
            setattr(policy, part, holder[part])
    policy.eval()


def _targets(policy: Policy, part: str, config: LoraConfig) -> list[str]:
    """Names within the policy. Of the language model those in decoder layers: never the embedding or output layer."""
    root = policy.get_submodule(part)
    inside = set(policy.language_model.base_model.layers.modules()) if part == "language_model" else set(root.modules())
    # Not its subclasses: attention of torch's own reads the weight of its output layer and never calls it.
    found = [n for n, module in root.named_modules(prefix=part) if type(module) is nn.Linear and module in inside]
    if not found:
        raise UserError(f"learner.lora: the {part} has no linear layer that could get an adapter")
    if part != "language_model" or config.targets is None:
        return found
    unknown = [t for t in config.targets if not any(name.endswith(f".{t}") for name in found)]
    if unknown or not config.targets:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in found}))
        raise UserError(
            f"learner.lora.targets: no linear layer is named {', '.join(unknown) or 'so'}; there are {known}"
        )
    return [name for name in found if any(name.endswith(f".{t}") for t in config.targets)]


@contextmanager
def switched_off(policy: Policy) -> Iterator[None]:
    """The policy without its adapters: the model that it is built on.

    peft's own switch also says which parameters need gradients, which FSDP2 asks only once.
    """
    layers: list[Any] = [module for module in policy.modules() if hasattr(module, "lora_A")]
    for layer in layers:
        layer.forward = layer.base_layer.forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the policy under its plain name, and the adapter on it, if any.

    Attributes:
        base: (out, in), or of any shape without an adapter; sharded or not, like the others.
        a, b: (r, in) and (out, r).
        factor: α / r.
    """

    base: nn.Parameter
    a: nn.Parameter | None = None
    b: nn.Parameter | None = None
    factor: float = 1.0

    def value(self) -> torch.Tensor:
        """What the policy computes with: W + (α/r)·B·A, sharded as W is. A collective where there is an adapter."""
        base = self.base.detach()
        if self.a is None or self.b is None:
            return base
        a = self.a.detach()
        if isinstance(a, DTensor):  # a rank's rows of the product need its rows of B and all of A
            a = a.redistribute(placements=[Replicate()])
        return base + self.factor * (self.b.detach() @ a)


def plain_weights(
    parameters: Sequence[tuple[str, nn.Parameter]], config: LoraConfig | None
) -> list[tuple[str, Weight]]:
    """A policy's parameters under the names that they have without adapters, in the same order."""
    if config is None:
        return [(name, Weight(parameter)) for name, parameter in parameters]
    named = dict(parameters)
    found = []
    for name, parameter in parameters:
        layer, base, attribute = name.rpartition(_BASE)
        if base and attribute == "weight":
            adapter = named[f"{layer}{_A}"], named[f"{layer}{_B}"]
            found.append((f"{layer}.weight", Weight(parameter, *adapter, config.factor)))
        elif not name.endswith((_A, _B)):
            found.append((f"{layer}.{attribute}" if base else name, Weight(parameter)))
    return found


def changes(trained: Mapping[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor | LowRank]:
    """What an export must change in the stored weights, by plain name.

    Args:
        trained: whole, by the policy's names: adapters, and weights that learned in full.
        factor: of B·A.
    """
    found: dict[str, torch.Tensor | LowRank] = {}
    for name, tensor in trained.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            found[f"{layer}.weight"] = LowRank(tensor, trained[f"{layer}{_B}"], factor)
        elif not name.endswith(_B):
            found[name] = tensor
    return found


def adapter_tensors(trained: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """A part's adapters under the names that they have in peft's checkpoints: for the language model those of the model
    alone, for the projector those in a module that holds it as `adaptor`.

    Args:
        trained: by the policy's names; other tensors than this part's adapters are left out.
    """
    start = "language_model." if part == "language_model" else ""
    return {
        f"{_PEFT}{name.removeprefix(start).removesuffix('.default.weight')}.weight": tensor.detach().contiguous()
        for name, tensor in trained.items()
        if name.startswith(f"{part}.") and name.endswith((_A, _B))
    }


def adapter_config(tensors: Mapping[str, torch.Tensor], config: LoraConfig, base: str) -> dict[str, Any]:
    """The `adapter_config.json` of a part's adapters.

    Args:
        tensors: of `adapter_tensors`.
        base: name of the model that they belong to.
    """
    layers = {name.removeprefix(_PEFT).rpartition(".lora_")[0] for name in tensors}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(layers),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def write_adapters(folder: Path, trained: Mapping[str, torch.Tensor], config: LoraConfig, base: str) -> None:
    """Write each part's adapter as a folder that peft loads: `folder` for the language model's, `folder/adaptor`.

    Args:
        trained: whole, by the policy's names.
    """
    for part in ADAPTED:
        tensors = adapter_tensors(trained, part)
        if not tensors:
            continue
        where = folder if part == "language_model" else folder / part
        where.mkdir(parents=True)
        settings = adapter_config(tensors, config, base)
        # `scale` is part of B: α stays the whole number that it is in other programs.
        scaled = {name: t * config.scale if ".lora_B." in name else t for name, t in tensors.items()}
        save_file(scaled, where / "adapter_model.safetensors", metadata={"format": "pt"})
        (where / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
