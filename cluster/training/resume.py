"""State dict of a run besides the learner: step, version, position in the data. A checkpoint holds it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.config import RunConfig
from cluster.data.prompts import PromptSource, derived_seed
from cluster.monitoring.phases import PhaseTimer
from cluster.system import System
from cluster.training.trainer import Trainer
from speech.manifests import Manifest


def new_trainer(config: RunConfig, system: System, manifests: Mapping[str, Manifest], timer: PhaseTimer) -> Trainer:
    """A trainer at the beginning of the run."""
    source = PromptSource(manifests["train"].utterances, config.seed, config.data.batch_prompts, config.data.shuffle)
    replay = None
    if "replay" in manifests:
        seed = derived_seed("replay", config.seed)
        replay = PromptSource(manifests["replay"].utterances, seed, config.data.replay_batch)
    return Trainer(config, system, source, replay, timer)


def state_dict(trainer: Trainer) -> dict[str, Any]:
    """Step, version, positions of the prompt sources, prompts in flight and the length history, as JSON values."""
    return {
        "step": trainer.step,
        "version": trainer.version,
        "source": trainer.source.state(),
        "replay": None if trainer.replay_source is None else trainer.replay_source.state(),
        "in_flight": [[[p.epoch, p.position] for p in prompts] for prompts in trainer.in_flight()],
        "lengths": trainer.history.state_dict(),
    }


def load_state_dict(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Restore a new trainer from the `state_dict` of another. The learner's weights are loaded elsewhere.

    Raises:
        LookupError, TypeError, ValueError: the state is not one of `state_dict`.
    """
    trainer.source.restore(state["source"])
    # Checkpoints of earlier releases have none.
    trainer.waiting.extend(trainer.source.at(places) for places in state.get("in_flight", []))
    if trainer.replay_source is not None:
        trainer.replay_source.restore(state["replay"])
    trainer.history.load_state_dict(state["lengths"])
    trainer.step, trainer.version = int(state["step"]), int(state["version"])
