"""State dict of a run besides the learner: step, version, position in the data. A checkpoint holds it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.config import RunConfig
from cluster.data.intake import PromptBatch
from cluster.data.prompts import PromptSource, derived_seed
from cluster.data.rejections import Rejections
from cluster.monitoring.phases import PhaseTimer
from cluster.system import System
from cluster.training.trainer import Trainer
from rollout.actors import EncodedRef
from speech.manifests import Manifest


def new_trainer(
    config: RunConfig,
    system: System,
    manifests: Mapping[str, Manifest],
    timer: PhaseTimer,
    rejections: Rejections,
) -> Trainer:
    """A trainer at the beginning of the run."""
    source = PromptSource(manifests["train"].utterances, config.seed, config.data.shuffle)
    replay = None
    if "replay" in manifests:
        seed = derived_seed("replay", config.seed)
        replay = PromptSource(manifests["replay"].utterances, seed)
    return Trainer(config, system, source, replay, timer, rejections)


def state_dict(trainer: Trainer) -> dict[str, Any]:
    """Step, version, positions of the prompt sources, prompts in flight, quarantine and the length history,
    as JSON values."""
    in_flight = trainer.in_flight()  # before the position: batches in flight may still take prompts
    return {
        "step": trainer.step,
        "version": trainer.version,
        "source": trainer.source.state(),
        "replay": None if trainer.replay_source is None else trainer.replay_source.state(),
        "in_flight": [[[p.epoch, p.position] for p in batch.prompts] for batch in in_flight],
        "rejected_in_flight": [[[p.epoch, p.position, why] for p, why in batch.rejected] for batch in in_flight],
        "quarantined": trainer.rejections.state_dict(),
        "lengths": trainer.history.state_dict(),
    }


def load_state_dict(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Restore a new trainer from the `state_dict` of another. The learner's weights are loaded elsewhere.

    Raises:
        LookupError, TypeError, ValueError: the state is not one of `state_dict`.
    """
    trainer.source.restore(state["source"])
    # Checkpoints of earlier releases have none.
    batches = state.get("in_flight", [])
    for places, rejected in zip(batches, state.get("rejected_in_flight", [[] for _ in batches]), strict=True):
        prompts = trainer.source.at((epoch, position) for epoch, position, _ in rejected)
        reasons = [reason for _, _, reason in rejected]
        batch = PromptBatch[EncodedRef](trainer.config.data.batch_prompts, trainer.source.at(places))
        batch.rejected = list(zip(prompts, reasons, strict=True))
        trainer.waiting.append(batch)
    trainer.rejections.load_state_dict(state.get("quarantined", {}))
    if trainer.replay_source is not None:
        trainer.replay_source.restore(state["replay"])
    trainer.history.load_state_dict(state["lengths"])
    trainer.step, trainer.version = int(state["step"]), int(state["version"])
