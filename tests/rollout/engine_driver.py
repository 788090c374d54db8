"""A real engine in the test's own process, with the event loop it lives in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from rollout.config import EngineConfig, SamplingConfig
from rollout.engine.engine import RolloutEngine
from tests.rollout.tiny_lm import (
    CONFIG,
    TinyFamily,
    buckets_of,
    make_prompts,
    probe_of,
    reference_logprobs,
    tiny_model,
)

Result = TypeVar("Result")


class Driver:
    """A real engine together with the event loop it lives in and the model whose weights it should hold."""

    def __init__(self, family: TinyFamily, config: EngineConfig) -> None:
        self.runner = asyncio.Runner()
        self.engine = RolloutEngine(family, config)
        self.model: PreTrainedModel = family.load_language_model()
        self.version = 0
        self.run(self.engine.start())

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(coroutine)

    def publish(self, model: PreTrainedModel, **options: Any) -> float:
        """A good publication of the next version."""
        delta = self.run(self.engine.update_weights(self.version + 1, buckets_of(model), probe_of(model), **options))
        self.version += 1
        self.model = model
        return delta

    def gap(self, sampling: SamplingConfig, count: int = 3) -> float:
        """Largest |Δ log-prob| between what the engine reports for fresh samples and transformers."""
        prompts, audio = make_prompts(count)
        groups = self.run(self.engine.generate(prompts, audio, sampling))
        return max(
            float((reference_logprobs(self.model, item, t, sampling) - torch.tensor(t.logprobs)).abs().max())
            for group, item in zip(groups, audio, strict=True)
            for t in group.trajectories
        )

    def close(self) -> None:
        self.engine.shutdown()
        self.runner.close()


def start_driver(folder: Path, *, tied: bool) -> Driver:
    tiny_model(0, tied=tied).save_pretrained(folder)
    return Driver(TinyFamily(folder), replace(CONFIG))
