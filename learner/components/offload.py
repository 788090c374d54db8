"""Leaving a GPU that others use too: modules and optimiser moments move to host memory and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


class DeviceOffloader:
    """What a rank holds on its device. On CPU there is nowhere to go, and nothing happens."""

    def __init__(
        self,
        device: torch.device,
        modules: Sequence[nn.Module],
        optimiser: torch.optim.Optimizer,
        forget: Callable[[], None],
    ) -> None:
        """`forget` drops whatever else is kept on the device and can be made anew."""
        self._device, self._modules, self._optimiser, self._forget = device, modules, optimiser, forget
        self._away: list[tuple[dict[str, torch.Tensor], str]] = []
        self.onloaded = True

    def offload(self) -> None:
        """Move everything to host memory and give the device's memory back; gradients are dropped."""
        if self._device.type == "cpu" or not self.onloaded:
            return
        self._optimiser.zero_grad(set_to_none=True)
        for module in self._modules:
            module.to("cpu")
        # Not all moments live on the device: AdamW counts its steps on the CPU.
        self._away = [
            (state, name)
            for state in self._optimiser.state.values()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.device.type == self._device.type
        ]
        for state, name in self._away:
            state[name] = state[name].to("cpu")
        self._forget()
        self.onloaded = False
        torch.cuda.empty_cache()

    def onload(self) -> None:
        """Bring everything back."""
        if self.onloaded:
            return
        for module in self._modules:
            module.to(self._device)
        for state, name in self._away:
            state[name] = state[name].to(self._device)
        self._away = []
        self.onloaded = True
