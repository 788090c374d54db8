"""What no section of a configuration can check alone: values that are fine by themselves and make no sense together,
and keys that the objective never reads.

Nothing heavy is imported, and nothing is asked of this machine that only the run's machine can answer: a submitted run
finds its models elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

from cluster.config.schema import RunConfig
from cluster.config.source import Source
from learner.batches.advantage import is_over_batch
from learner.config import LOSSES_OF_SAMPLES, SAMPLED_OBJECTIVES
from learner.registries import ADVANTAGES
from rewards.compose import RewardComposition
from rewards.config import JudgeConfig, SoundConfig
from rewards.listening.judge import check_second_judge
from rewards.listening.locations import PREFIX
from rewards.listening.models import SoundModels
from rewards.registry import reward_problems
from speech.errors import Problem, UserError

POLICY_OBJECTIVES = (*SAMPLED_OBJECTIVES, "sft")
OBJECTIVES = (*POLICY_OBJECTIVES, "token2text")
READ_BY: dict[str, tuple[str, ...]] = {
    "model.family": POLICY_OBJECTIVES,
    "model.options": POLICY_OBJECTIVES,
    "data.replay": SAMPLED_OBJECTIVES,
    "data.replay_weight": SAMPLED_OBJECTIVES,
    "data.replay_batch": SAMPLED_OBJECTIVES,
    "staleness": SAMPLED_OBJECTIVES,
    "update": SAMPLED_OBJECTIVES,
    "placement": POLICY_OBJECTIVES,
    "sampling": POLICY_OBJECTIVES,  # evaluations read it too
    "sampling.group_size": SAMPLED_OBJECTIVES,
    "engines": POLICY_OBJECTIVES,
    "engines.startup_timeout_s": OBJECTIVES,
    "engines.generate_timeout_s": OBJECTIVES,
    "encoder.min": POLICY_OBJECTIVES,
    "encoder.max": POLICY_OBJECTIVES,
    "encoder.dtype": POLICY_OBJECTIVES,
    "rewards": SAMPLED_OBJECTIVES,
    "rewards.sound": POLICY_OBJECTIVES,  # evaluations listen with it
    "learner.train": POLICY_OBJECTIVES,
    "learner.loss": SAMPLED_OBJECTIVES,  # `diffro` logs its metrics
    "learner.diffro": ("diffro", "combined"),
    "learner.distillation": SAMPLED_OBJECTIVES,
    "learner.lora": POLICY_OBJECTIVES,
    "learner.advantage": SAMPLED_OBJECTIVES,
    "learner.zero_variance": SAMPLED_OBJECTIVES,
    "learner.updates_per_step": POLICY_OBJECTIVES,
    "learner.logits_chunk": POLICY_OBJECTIVES,
    "learner.activation_checkpointing": POLICY_OBJECTIVES,
    "learner.ctc_weight": ("sft",),
    "learner.augment": ("sft",),
    "learner.restarts": POLICY_OBJECTIVES,
    "token2text": ("token2text",),
    "publish": POLICY_OBJECTIVES,  # before an evaluation, in `sft`
    "evaluation.max_new_tokens": POLICY_OBJECTIVES,
    "evaluation.sampled": POLICY_OBJECTIVES,
    "watchdog_minutes": POLICY_OBJECTIVES,
}
"""Which objectives read a key, or all of a section. The longest entry counts; a key without one is read by all."""


def readers(key: str) -> tuple[str, ...]:
    """The objectives that read a key."""
    while key and key not in READ_BY:
        key = key.rpartition(".")[0]
    return READ_BY.get(key, OBJECTIVES)


def settle_unread_keys(source: Source, defaults: dict[str, Any]) -> list[Problem]:
    """Give every key that the objective never reads its default.

    Returns:
        A problem for each that was set with the objective or after it: in the same file, in one that builds on it, or
        on the command line. What is set before was written for another objective: a base file serves several, and the
        command line may choose another than the file did.
    """
    objective = source.values["objective"]
    if objective not in OBJECTIVES:
        return []
    found = []
    for key in _unread(source.values, defaults, objective, ""):
        if source.layer(key) >= source.layer("objective"):
            others = [f"`{name}`" for name in readers(key)]
            only = f"{', '.join(others[:-1])} and {others[-1]} read it" if others[1:] else f"{others[0]} reads it"
            found.append(source.problem(key, f"has no effect with `objective: {objective}`; only {only}"))
    return found


def _unread(values: dict[str, Any], defaults: dict[str, Any], objective: str, prefix: str) -> Iterator[str]:
    for name, default in defaults.items():
        key, value = f"{prefix}{name}", values.get(name, default)
        if isinstance(value, dict) and isinstance(default, dict) and default:
            yield from _unread(value, default, objective, f"{key}.")
        elif value != default and objective not in readers(key):
            values[name] = deepcopy(default)
            if value is not None or not isinstance(default, dict):  # a section with nothing below it
                yield key


def across_sections(config: RunConfig) -> list[tuple[str, str]]:
    """(key, message) for each value that makes no sense beside the others."""
    found = []
    if config.name in ("", ".", "..") or "/" in config.name:
        found.append(("name", f"{config.name!r} cannot be the name of a folder"))
    if config.evaluation.every and config.data.valid is None:
        found.append(("evaluation.every", "evaluations during training need a manifest in `data.valid`"))
    if config.learner.lr_floor > 1:
        found.append(("learner.lr_floor", "is a share of `learner.lr`, at most 1"))
    loss = config.learner.loss
    if loss.aggregation == "constant" and loss.constant_length < 1:
        found.append(("learner.loss.constant_length", "`constant` aggregation needs it: use sampling.max_new_tokens"))
    if loss.kl_in == "reward":
        found += _kl_in_reward_problems(config)
    if config.sampling.min_new_tokens > config.sampling.max_new_tokens:
        found.append(("sampling.min_new_tokens", "is more than sampling.max_new_tokens"))
    found += _model_problems(config)
    if config.objective in POLICY_OBJECTIVES:
        found += _engine_problems(config)
    found += _schedule_problems(config)
    if config.uses_diffro:
        found += _diffro_problems(config)
    if config.objective in SAMPLED_OBJECTIVES:
        if config.sampling.group_size < 2:
            found.append(("sampling.group_size", "a group of one has no advantage; at least 2 are needed"))
        found += _reward_problems(config)
        found += _distillation_problems(config)
        advantage = config.learner.advantage
        known = advantage in ADVANTAGES and ":" not in advantage
        if config.learner.zero_variance == "resample" and known and is_over_batch(advantage):
            text = f"`resample` draws prompts in rounds, and `learner.advantage: {advantage}` needs the whole batch"
            found.append(("learner.zero_variance", text))
    if listens(config):
        try:
            check_second_judge(_anywhere(config.rewards.sound))
        except UserError as error:
            found.append(_named(error, "rewards.sound"))
    return list(dict.fromkeys(found))


def listens(config: RunConfig) -> bool:
    """Whether training evaluates speech, for which both judges must be there."""
    evaluation, data = config.evaluation, config.data
    tested = data.test is not None and (evaluation.before or evaluation.after)
    is_policy = config.objective in POLICY_OBJECTIVES
    return is_policy and config.model.codec is not None and (tested or evaluation.every > 0)


def _model_problems(config: RunConfig) -> list[tuple[str, str]]:
    found = []
    train = config.learner.train
    if config.objective == "token2text" and config.model.codec is None:
        found.append(("model.codec", "name the codec whose tokens the Token2Text model reads"))
    elif config.model.codec is not None and train != ["language_model"]:
        found.append(("learner.train", "a model with a codec speaks, and has nothing but its language_model to train"))
    if config.objective in SAMPLED_OBJECTIVES and "encoder" in train:
        found.append(("learner.train", "the encoder can only be trained with `objective: sft`"))
    if config.learner.lora is not None and train == ["encoder"]:
        found.append(("learner.lora", "adapters are for language_model and adaptor; `learner.train` has neither"))
    found += _adapter_problems(config)
    if "encoder" not in train:
        for name in ("augment", "ctc_weight"):
            if getattr(config.learner, name):
                found.append((f"learner.{name}", "needs a learner that trains the encoder (`learner.train`)"))
    return found


def _engine_problems(config: RunConfig) -> list[tuple[str, str]]:
    found = [(f"engines.{key}", text) for key, text in config.engines.problems()]
    length = config.engines.max_model_len
    for key, tokens in (
        ("sampling.max_new_tokens", config.sampling.max_new_tokens),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens or 0),
    ):
        if tokens >= length:
            found.append((key, f"{tokens} leaves no room for a prompt in engines.max_model_len={length}"))
    return found


def _adapter_problems(config: RunConfig) -> list[tuple[str, str]]:
    """Of engines that get the adapter alone."""
    lora, largest = config.learner.lora, config.engines.lora_rank
    if not largest:
        return []
    if lora is None or "language_model" not in config.learner.train:
        return [("engines.lora_rank", "no adapter of the language model is trained (`learner.lora`, `learner.train`)")]
    if lora.rank > largest:
        return [("engines.lora_rank", f"is {largest}, less than `learner.lora.rank` of {lora.rank}")]
    return []


def _reward_problems(config: RunConfig) -> list[tuple[str, str]]:
    rewards = config.rewards
    found = [
        (f"rewards.items.{i}" + (f".options.{option}" if option else ""), text)
        for i, item in enumerate(rewards.items)
        for option, text in reward_problems(item.name, item.options)
    ]
    if found:
        return found
    try:
        composition = RewardComposition(rewards)
        SoundModels(_anywhere(rewards.sound)).check(composition.needs)
    except UserError as error:
        return [_named(error, "rewards")]
    if composition.on_sound and config.model.codec is None:
        names = ", ".join(sorted(composition.on_sound))
        found.append(("rewards.items", f"{names} score sound; name the codec of the model's speech (`model.codec`)"))
    if composition.needs_spans and config.model.codec is not None:
        found.append(("rewards.items", "`word_credit` is for models that write; one with a codec speaks"))
    if composition.needs_spans and config.learner.loss.name in LOSSES_OF_SAMPLES:
        text = f"`{config.learner.loss.name}` has one ratio per response, so `word_credit` would have no effect"
        found.append(("learner.loss.name", text))
    return found


def _kl_in_reward_problems(config: RunConfig) -> list[tuple[str, str]]:
    loss, key = config.learner.loss, "learner.loss.kl_in"
    if loss.kl_coef == 0:
        return [(key, "no KL is taken off the reward with `learner.loss.kl_coef: 0`")]
    if loss.kl_estimator != "k1":
        return [("learner.loss.kl_estimator", "a KL in the reward is the log-ratio of sampled tokens; set it to `k1`")]
    if loss.name in LOSSES_OF_SAMPLES:
        return [(key, f"`{loss.name}` has one ratio per response, and `reward` makes advantages of tokens")]
    return []


def _distillation_problems(config: RunConfig) -> list[tuple[str, str]]:
    learner, found = config.learner, []
    if learner.distillation.teacher is None or learner.distillation.weight == 0:
        return []
    if learner.loss.kl_estimator == "k3":
        text = "`k3` has the gradient of the forward KL, and distillation minimises the reverse: `full`, `k1` or `k2`"
        found.append(("learner.loss.kl_estimator", text))
    if learner.zero_variance != "keep" and not any(item.weight for item in config.rewards.items):
        text = "rewards of weight 0 leave every group without variance; `keep` them, to learn from the teacher alone"
        found.append(("learner.zero_variance", text))
    return found


def _schedule_problems(config: RunConfig) -> list[tuple[str, str]]:
    found = _colocation_problems(config) if config.placement == "colocated" else []
    if config.update == "inflight" and config.staleness == 0:
        found.append(("update", "nothing is in flight at a publication with `staleness: 0`; leave it at `drain`"))
    if config.staleness > 0:
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
    if config.objective == "diffro" and config.learner.loss.kl_coef > 0 and config.learner.loss.kl_estimator != "full":
        message = "`objective: diffro` has no loss on sampled tokens for an estimate to stand in; set it to `full`"
        found.append(("learner.loss.kl_estimator", message))
    return found


def _anywhere(sound: SoundConfig) -> SoundConfig:
    """The models without `package:`, since a package need not be installed here."""

    def judge(config: JudgeConfig) -> JudgeConfig:
        return replace(config, path=config.path.removeprefix(PREFIX))

    return replace(sound, judge=judge(sound.judge), second_judge=judge(sound.second_judge))


def _named(error: UserError, section: str) -> tuple[str, str]:
    """The key that a message begins with, and the rest of it; without one `section`."""
    match = re.match(r"(rewards\.[\w.]+):? (.*)", str(error), re.DOTALL)
    return (match[1], match[2]) if match else (section, str(error))
