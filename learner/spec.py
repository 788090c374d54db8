"""What a learner rank is told once, and what it answers after a step."""

from __future__ import annotations

from dataclasses import dataclass

from learner.config import LearnerConfig
from learner.model.sampler import SamplerSettings


@dataclass(frozen=True, slots=True)
class RankSpec:
    """Everything that a rank must be told once.

    Attributes:
        model, family: checkpoint folder and registry name (None: by `model_type`).
        objective: `grpo`, `diffro`, `combined` or `sft`.
        temperature, min_new_tokens, stop_ids: the sampler's, so that log-probs agree.
        total_steps: of the run, for the learning-rate schedule.
        replay_weight: of the SFT replay loss.
        seed: run seed, from which augmentation and Gumbel noise derive.
        allowed_token_ids: the only ids that the engine may sample, None for all.
        speech_ids: the language model's ids of the codec's tokens 0, 1, … (DiffRO only).
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
    allowed_token_ids: tuple[int, ...] | None = None
    speech_ids: range = range(0)

    @property
    def sampler(self) -> SamplerSettings:
        """What the engine does to the logits of a rollout."""
        return SamplerSettings(self.temperature, self.min_new_tokens, self.stop_ids, self.allowed_token_ids)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step's updates reported.

    Attributes:
        metrics: means and maxima over all tokens of the step.
        sample_gaps: by audio index, the largest |learner − engine| log-prob of each sample, in nats.
    """

    metrics: dict[str, float]
    sample_gaps: dict[int, list[float]]


def uses_diffro(spec: RankSpec) -> bool:
    """Whether the differentiable reward is part of the loss."""
    return spec.objective in ("diffro", "combined") and spec.config.diffro.weight > 0
