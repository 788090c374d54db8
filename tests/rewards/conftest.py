"""Groups for reward tests, and rewards that misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from speech.records import FinishReason, Group, Prompt, PromptLayout, Trajectory, Utterance

# Workers must find `tests.rewards.misbehaving_rewards` too, and of the driver's import path they inherit only this.
_ROOT = str(Path(__file__).parents[2])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))

MakeGroup = Callable[..., Group]


def build_group(
    reference: str,
    hypotheses: Sequence[str],
    *,
    language: str | None = "en",
    keywords: tuple[str, ...] = (),
    peak: float = 0.5,
    finish_reason: FinishReason = "stop",
    claimed: str | None = None,
    name: str = "u",
) -> Group:
    utterance = Utterance(id=name, audio="/none.flac", text=reference, language=language, keywords=keywords)
    trajectories = tuple(
        Trajectory(
            prompt_id=f"0/{name}",
            index=index,
            token_ids=(1,),
            logprobs=(-0.1,),
            version_first=0,
            version_last=0,
            finish_reason=finish_reason,
            seed=index,
            text=text,
            language=claimed,
        )
        for index, text in enumerate(hypotheses)
    )
    prompt = Prompt(id=f"0/{name}", utterance=utterance, epoch=0, position=0, seed=1)
    return Group(prompt, PromptLayout((0,), 0, 1), trajectories, seconds=1.0, peak=peak)


@pytest.fixture(scope="session")
def make_group() -> MakeGroup:
    return build_group
