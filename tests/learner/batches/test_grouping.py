"""From scored groups to training groups."""

from __future__ import annotations

from dataclasses import replace

import pytest

from learner.batches.grouping import Target, select_groups
from speech.records import Group, Prompt, PromptLayout, Reward, Trajectory, Utterance


def scored(name: str, totals: list[float | None]) -> Group:
    utterance = Utterance(id=name, audio="a.wav", text="x")
    trajectories = tuple(
        Trajectory(
            prompt_id=name,
            index=i,
            token_ids=(7, 1),
            logprobs=(-1.0, -0.1),
            version_first=0,
            version_last=0,
            finish_reason="stop",
            seed=i,
            text="x",
        )
        for i in range(len(totals))
    )
    rewards = tuple(
        Reward(total=None, invalid="judge time-out") if t is None else Reward(total=t, parts={"accuracy": t})
        for t in totals
    )
    prompt = Prompt(id=name, utterance=utterance, epoch=0, position=0, seed=1)
    return Group(prompt, PromptLayout((3, 2, 4), 1, 1), trajectories, 1.0, 0.5, rewards)


def test_invalid_samples_are_masked_and_counted() -> None:
    selection = select_groups([scored("a", [1.0, None, 0.0])], [4], "group_mean", False)
    (group,) = selection.groups
    assert [sample.advantage for sample in group.samples] == [0.5, -0.5]
    assert (group.audio, selection.trained, selection.invalid_samples) == (4, ["a"], 1)


def test_group_without_two_valid_samples_is_rejected_with_the_reason() -> None:
    selection = select_groups([scored("a", [None, None, 0.3])], [0], "group_std", True)
    assert not selection.groups and "judge time-out" in selection.rejected[0][1]


def test_natural_stop_and_target_reach_the_learner() -> None:
    group = scored("a", [1.0, 0.0])
    stopped, endless = group.trajectories
    cut = replace(group, trajectories=(stopped, replace(endless, finish_reason="length")))
    (selected,) = select_groups([cut], [0], "group_mean", False, [Target((4, 2), (1,))]).groups
    assert [sample.finished for sample in selected.samples] == [True, False]
    assert [sample.speech_tokens for sample in selected.samples] == [1, 2]
    assert (selected.text_ids, selected.attributes) == ((4, 2), (1,))


def test_over_the_batch_a_group_without_variance_may_teach() -> None:
    """All its samples are better than the other prompt's."""
    groups = [scored("same", [1.0, 1.0]), scored("other", [0.0, 0.5])]
    same, other = select_groups(groups, [0, 1], "reinforce_pp", True).groups
    assert all(s.advantage > 0.5 for s in same.samples) and all(s.advantage < 0 for s in other.samples)
    dropped = select_groups(groups, [0, 1], "reinforce_pp", False)
    assert dropped.trained == ["other"] and sum(s.advantage for s in dropped.groups[0].samples) == pytest.approx(0)


@pytest.mark.parametrize("keep", [True, False])
def test_zero_variance_groups_are_counted_and_kept_or_dropped(keep: bool) -> None:
    groups = [scored("same", [0.5, 0.5]), scored("other", [0.5, 0.25])]
    selection = select_groups(groups, [0, 1], "group_std", keep)
    assert selection.zero_variance == 1
    assert len(selection.groups) + len(selection.rejected) == 2
    if keep:
        assert [s.advantage for s in selection.groups[0].samples] == [0.0, 0.0]
    else:
        assert selection.rejected == [("same", "zero variance")] and selection.trained == ["other"]
