"""What no section of a configuration can check alone: values that are fine by themselves and make no sense together."""

from __future__ import annotations

from cluster.config.schema import RunConfig
from learner.config import SAMPLED_OBJECTIVES
from rewards.registry import build_reward
from speech.errors import UserError


def across_sections(config: RunConfig) -> list[tuple[str, str]]:
    """(key, message) for each such value."""
    found = []
    if config.name in ("", ".", "..") or "/" in config.name:
        found.append(("name", f"{config.name!r} cannot be the name of a folder"))
    if config.evaluation.every and config.data.valid is None:
        found.append(("evaluation.every", "evaluations during training need a manifest in `data.valid`"))
    if config.objective == "sft" and config.data.replay is not None:
        found.append(("data.replay", "replay is cross-entropy already; it has no effect with `objective: sft`"))
    if config.objective in SAMPLED_OBJECTIVES and "encoder" in config.learner.train:
        found.append(("learner.train", "the encoder can only be trained with `objective: sft`"))
    if config.objective == "sft" and config.learner.zero_variance == "resample":
        found.append(("learner.zero_variance", "there are no groups to resample with `objective: sft`"))
    if "encoder" not in config.learner.train:
        for name in ("augment", "ctc_weight"):
            if getattr(config.learner, name):
                found.append((f"learner.{name}", "needs a learner that trains the encoder (`learner.train`)"))
    if config.learner.lr_floor > 1:
        found.append(("learner.lr_floor", "is a share of `learner.lr`, at most 1"))
    loss = config.learner.loss
    if loss.aggregation == "constant" and loss.constant_length < 1:
        found.append(("learner.loss.constant_length", "`constant` aggregation needs it: use sampling.max_new_tokens"))
    if config.sampling.min_new_tokens > config.sampling.max_new_tokens:
        found.append(("sampling.min_new_tokens", "is more than sampling.max_new_tokens"))
    if config.objective == "token2text":
        found += _token2text_problems(config)
    found += _schedule_problems(config)
    if config.uses_diffro:
        found += _diffro_problems(config)
    if config.objective in SAMPLED_OBJECTIVES:
        if config.sampling.group_size < 2:
            found.append(("sampling.group_size", "a group of one has no advantage; at least 2 are needed"))
        for i, item in enumerate(config.rewards.items):
            try:
                build_reward(item.name, item.options)
            except UserError as error:
                found.append((f"rewards.items.{i}", str(error)))
    return found


def _schedule_problems(config: RunConfig) -> list[tuple[str, str]]:
    found = _colocation_problems(config) if config.placement == "colocated" else []
    if config.update == "inflight" and config.staleness == 0:
        found.append(("update", "nothing is in flight at a publication with `staleness: 0`; leave it at `drain`"))
    if config.staleness > 0:
        if config.objective == "sft":
            found.append(("staleness", "`objective: sft` samples nothing that could be stale; leave it at 0"))
        if config.placement == "colocated":
            found.append(("placement", "components that take turns cannot overlap; `colocated` needs `staleness: 0`"))
        if config.objective in ("grpo", "combined") and config.learner.loss.importance_cap == 0:
            message = (
                "stale samples need importance weights: they were drawn by another policy than the one that learns. "
                "Set a cap, such as 2"
            )
            found.append(("learner.loss.importance_cap", message))
    return found


def _colocation_problems(config: RunConfig) -> list[tuple[str, str]]:
    engines, learner = config.engines, config.learner
    found = []
    if (engines.gpus_per_engine > 0) != (learner.gpus_per_rank > 0):
        found.append(("placement", "`colocated` needs engines and learner both on GPUs, or both without"))
    elif engines.gpus_per_engine > 0 and (engines.gpus_per_engine, engines.count) != (1, learner.ranks):
        message = "`colocated` puts one engine and one learner rank on each GPU: engines.gpus_per_engine=1 and "
        found.append(("placement", message + "engines.count equal to learner.ranks"))
    elif engines.gpus_per_engine > 0 and engines.min_count != engines.max_count:
        found.append(("placement", "`colocated` has one engine on each GPU; leave engines.min and engines.max at null"))
    if engines.gpus_per_engine > 0 and config.encoder.min_count != config.encoder.max_count:
        message = "`colocated` gives encoders a fixed share of each GPU; leave encoder.min and encoder.max at null"
        found.append(("placement", message))
    return found


def _diffro_problems(config: RunConfig) -> list[tuple[str, str]]:
    found = []
    if not config.learner.diffro.reward_model:
        found.append(("learner.diffro.reward_model", "DiffRO needs the folder of a Token2Text reward model"))
    if config.model.codec is None:
        found.append(("model.codec", "DiffRO is for models that speak: name the codec of their tokens"))
    if config.learner.loss.kl_coef > 0 and config.learner.diffro.kl_coef > 0:
        found.append(("learner.diffro.kl_coef", "one KL is enough: `learner.loss.kl_coef` is above 0 too"))
    return found


def _token2text_problems(config: RunConfig) -> list[tuple[str, str]]:
    found = []
    if config.model.codec is None:
        found.append(("model.codec", "name the codec whose tokens the Token2Text model reads"))
    if config.data.replay is not None:
        found.append(("data.replay", "there is no replay with `objective: token2text`"))
    if config.learner.updates_per_step != 1:
        found.append(("learner.updates_per_step", "is always 1 with `objective: token2text`"))
    return found
