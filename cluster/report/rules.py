"""Warnings that a human should read. Each rule is a pure function from the facts of a run to a verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cluster.report.runs import STAGES, RunRecord
from cluster.report.utterances import JudgedEdits

State = Literal["warning", "silent", "unknown"]


@dataclass(frozen=True)
class Facts:
    """What rules look at.

    Attributes:
        run: metrics and evaluations.
        judged: edits by judge and stage, as `cluster.report.utterances.judged` counts them.
        shares: of each part of the reward, its share of what rewards differ by inside groups; together 1.
    """

    run: RunRecord
    judged: JudgedEdits = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)


class Verdict(NamedTuple):
    """What a rule found: whether a human should read it, and the figures that say so."""

    state: State
    text: str


@dataclass(frozen=True)
class Rule:
    """A rule of the page.

    Attributes:
        title: what is the case when it warns.
        reason: why that matters, and what to look at.
        check: the rule itself.
        look: part of the page that shows more, and after a colon the choice of utterances there.
    """

    title: str
    reason: str
    check: Callable[[Facts], Verdict]
    look: str


class Ends(NamedTuple):
    """Means of the first and of the last fifth of a curve, and two standard errors of their difference."""

    first: float
    last: float
    noise: float


def ends(values: Sequence[float]) -> Ends | None:
    """None for fewer than 10 values: of so few nothing can be said."""
    if len(values) < 10:
        return None
    part = max(2, len(values) // 5)
    head, tail = values[:part], values[-part:]
    error = (statistics.variance(head) / part + statistics.variance(tail) / part) ** 0.5
    return Ends(statistics.fmean(head), statistics.fmean(tail), 2 * error)


def reward_against_second_judge(facts: Facts) -> Verdict:
    """The reward rises, and the second judge hears more errors."""
    reward = ends(facts.run.series("reward/mean"))
    valid = ends(facts.run.series("valid/wer_second"))
    before, after = (facts.run.score(stage, "wer_second") for stage in STAGES)
    if before is None or after is None:
        before, after = (valid.first, valid.last) if valid else (None, None)
    if reward is None or before is None or after is None:
        return Verdict("unknown", "needs ten steps and a second judge before and after")
    text = f"reward {reward.first:.3g} → {reward.last:.3g}, WER by the second judge {before:.1%} → {after:.1%}"
    return Verdict("warning" if reward.last - reward.first > reward.noise and after > before else "silent", text)


def second_judge_confirms_less(facts: Facts) -> Verdict:
    """Of what the training judge hears less of a kind of error, the second judge confirms less than half."""
    first, second = (facts.judged.get(judge) for judge in ("training judge", "second judge"))
    if first is None or second is None:
        return Verdict("unknown", "needs both judges before and after")
    doubted: list[str] = []
    confirmed: list[str] = []
    for kind in ("substitutions", "deletions", "insertions"):
        (old, new), (other_old, other_new) = (
            [getattr(its[stage], kind) for stage in STAGES] for its in (first, second)
        )
        text = f"{kind} {old} → {new} by the training judge, {other_old} → {other_new} by the second"
        weighs = old - new >= max(5, 0.01 * first["before"].reference_length)
        (doubted if weighs and 2 * (other_old - other_new) < old - new else confirmed).append(text)
    if not doubted:
        return Verdict("silent", "; ".join(confirmed))
    return Verdict("warning", f"Not confirmed: {'; '.join(doubted)}. Confirmed: {'; '.join(confirmed) or 'nothing'}.")


def result_is_worse(facts: Facts) -> Verdict:
    """The error rate of the test split rose."""
    before, after = (facts.run.score(stage, "wer") for stage in STAGES)
    if before is None or after is None:
        return Verdict("unknown", "needs an evaluation before and after")
    return Verdict("warning" if after > before else "silent", f"WER {before:.1%} → {after:.1%}")


def length_drifts(facts: Facts) -> Verdict:
    """Samples became a fifth longer or shorter."""
    found = ends(facts.run.series("rollout/length_mean"))
    if found is None or found.first <= 0:
        return Verdict("unknown", "needs ten steps")
    drift = found.last / found.first - 1
    text = f"tokens per sample {found.first:.1f} → {found.last:.1f} ({drift:+.0%})"
    return Verdict("warning" if abs(drift) > 0.2 and abs(found.last - found.first) > found.noise else "silent", text)


def samples_are_cut_off(facts: Facts) -> Verdict:
    """One sample in twenty runs out of tokens."""
    values = facts.run.series("rollout/no_stop_share")
    if not values:
        return Verdict("unknown", "needs a step")
    share = statistics.fmean(values[-max(1, len(values) // 5) :])
    return Verdict("warning" if share > 0.05 else "silent", f"{share:.1%} of the last samples")


def entropy_collapses(facts: Facts) -> Verdict:
    """Less than three tenths of the entropy are left, or next to nothing."""
    found = ends(facts.run.series("learner/entropy"))
    if found is None:
        return Verdict("unknown", "needs ten steps")
    text = f"{found.first:.3f} → {found.last:.3f} nats"
    return Verdict("warning" if found.last < 0.3 * found.first or found.last < 0.01 else "silent", text)


def invalid_share_rises(facts: Facts) -> Verdict:
    """More than one sample in a hundred has no reward, and more than in the beginning."""
    lines = facts.run.metrics
    shares = [
        line["reward/invalid"] / line["rollout/trajectories"]
        for line in lines
        if line.get("reward/invalid") is not None and line.get("rollout/trajectories")
    ]
    found = ends(shares)
    if found is None:
        return Verdict("unknown", "needs ten steps")
    text = f"{found.first:.1%} → {found.last:.1%} of the samples"
    return Verdict("warning" if found.last > 0.01 and found.last - found.first > found.noise else "silent", text)


def groups_teach_nothing(facts: Facts) -> Verdict:
    """In half of the last groups all samples have the same reward."""
    values = facts.run.series("reward/zero_variance_share")
    if not values:
        return Verdict("unknown", "needs a step with rewards")
    share = statistics.fmean(values[-max(1, len(values) // 5) :])
    return Verdict("warning" if share > 0.5 else "silent", f"{share:.0%} of the last groups")


def logprob_gap_drifts(facts: Facts) -> Verdict:
    """Learner and engine disagree twice as much as in the beginning."""
    found = ends(facts.run.series("logprob_gap/mean"))
    if found is None:
        return Verdict("unknown", "needs ten steps")
    text = f"mean gap {found.first:.2g} → {found.last:.2g} nats"
    rises = found.last > 2 * found.first and found.last - found.first > found.noise
    return Verdict("warning" if rises else "silent", text)


def one_part_dominates(facts: Facts) -> Verdict:
    """More than nine tenths of what rewards differ by inside groups come from one part of several."""
    if len(facts.shares) < 2:
        return Verdict("unknown", "needs groups with two parts of a reward")
    shares = sorted(facts.shares.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    return Verdict("warning" if shares[0][1] > 0.9 else "silent", text)


def speech_gets_faster(facts: Facts) -> Verdict:
    """As the training judge hears it, a second of speech holds 15 % more characters."""
    rates = [_characters_per_second(facts.run, stage) for stage in STAGES]
    before, after = rates
    if before is None or after is None:
        return Verdict("unknown", "needs speech before and after")
    text = f"{before:.1f} → {after:.1f} characters heard per second ({after / before - 1:+.0%})"
    return Verdict("warning" if after > 1.15 * before else "silent", text)


def _characters_per_second(run: RunRecord, stage: str) -> float | None:
    lines = [line for line in run.hypotheses(stage) if "hypothesis_second" in line and line.get("hypothesis")]
    seconds = sum(line.get("seconds") or 0.0 for line in lines)
    characters = sum(len(line["hypothesis"].replace(" ", "")) for line in lines)
    return characters / seconds if seconds and characters else None


RULES = (
    Rule(
        "The reward rises while the second judge hears more errors",
        "The policy learns what its judge likes, and not what is right (reward hacking). Listen to what the judges "
        "disagree on before you believe the reward.",
        reward_against_second_judge,
        "utterances:doubted",
    ),
    Rule(
        "The second judge confirms only a part of the gain",
        "The judge that gives the reward knows what it expects to hear, and the policy learns to be understood by it. "
        "A kind of error that only this judge hears less of may not be gone. Listen to the utterances that the "
        "training judge hears right and the second does not.",
        second_judge_confirms_less,
        "utterances:doubted",
    ),
    Rule(
        "The test split got worse",
        "Training optimised something else than the error rate, or forgot what it does not see.",
        result_is_worse,
        "utterances:worse",
    ),
    Rule(
        "The length of samples drifts",
        "Growth is how loops and padding begin. A fall may be words left out: look whether deletions rise, or whether "
        "it is insertions that went.",
        length_drifts,
        "curves",
    ),
    Rule(
        "Samples are cut off",
        "sampling.max_new_tokens is too small, or the model does not find its end. A sample without an end teaches "
        "little.",
        samples_are_cut_off,
        "utterances:failed",
    ),
    Rule(
        "The entropy collapses",
        "Samples of a group become the same: exploration ends, and with it learning. A higher temperature, a KL term "
        "or clip_high above clip_low keep it up.",
        entropy_collapses,
        "curves",
    ),
    Rule(
        "More samples have no reward",
        "Their reward failed and they are masked. When that depends on what the policy says, the rest is a biased "
        "selection. The reasons stand beside the samples.",
        invalid_share_rises,
        "groups",
    ),
    Rule(
        "Most groups teach nothing",
        "A group whose samples all have the same reward has no advantage. The data are too easy or too hard by now, or "
        "the reward is too coarse.",
        groups_teach_nothing,
        "groups",
    ),
    Rule(
        "Learner and engine drift apart",
        "Their log-probs of the same tokens must agree. A rising gap means weights that did not arrive, or numbers "
        "that are too coarse; with a staleness above 0 it also holds what was learned meanwhile.",
        logprob_gap_drifts,
        "curves",
    ),
    Rule(
        "One part of the reward decides alone",
        "What rewards differ by inside groups is what the policy is taught. The other parts have a weight in the "
        "configuration, and no say.",
        one_part_dominates,
        "groups",
    ),
    Rule(
        "Speech gets faster",
        "Hurried speech ends sooner and may please a reward on duration. Words per second should not rise with the "
        "reward.",
        speech_gets_faster,
        "utterances",
    ),
)
"""In the order of the page."""


def verdicts(facts: Facts) -> list[tuple[Rule, Verdict]]:
    """Every rule and what it found, warnings first."""
    order: dict[State, int] = {"warning": 0, "silent": 1, "unknown": 2}
    return sorted(((rule, rule.check(facts)) for rule in RULES), key=lambda found: order[found[1].state])
