"""Which utterances an evaluation samples; encoder and engines are stand-ins without any work in them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.evaluation.comparison import on_common_utterances
from cluster.evaluation.result import Decoding, load_evaluation, store_evaluation
from cluster.evaluation.sampling import Stopwatch
from cluster.evaluation.scores import TranscriptScores
from cluster.evaluation.split import with_samples
from cluster.evaluation.transcripts import evaluate, transcript_scores
from rollout.actors import EncodedRef
from rollout.config import SamplingConfig
from speech.errors import InputError, UserError
from speech.records import BadUtterance, Group, Prompt, PromptLayout, Trajectory, Utterance

GREEDY = SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=8)


class StandIn:
    """Hears every utterance as its own text."""

    config = SimpleNamespace(generate_timeout_s=1.0, max_model_len=20)

    def encode(self, utterances: Sequence[Utterance], timeout: float) -> list[EncodedRef | BadUtterance]:
        return [
            BadUtterance(u.id, "no such file")
            if u.id == "gone"
            else EncodedRef(None, 1.0, PromptLayout((0,) * (13 if u.id == "long" else 12), 0, 1))  # type: ignore[arg-type]
            for u in utterances
        ]

    def generate(self, prompts: Sequence[Prompt], audio: Any, sampling: Any, timeout: Any) -> list[Any]:
        return [
            BadUtterance("deadly", "no engine can sample it")
            if prompt.utterance.id == "deadly"
            else Group(prompt, PromptLayout((0,), 0, 1), (heard(prompt),), 1.0, 0.5)
            for prompt in prompts
        ]


def heard(prompt: Prompt) -> Trajectory:
    return Trajectory(
        prompt_id=prompt.id,
        index=0,
        token_ids=(1,),
        logprobs=(0.0,),
        version_first=0,
        version_last=0,
        finish_reason="stop",
        seed=0,
        text=prompt.utterance.text,
    )


def utterances(*names: str) -> list[Utterance]:
    return [Utterance(id=name, audio=f"/{name}.wav", text="turn on the light", language="en") for name in names]


def test_utterances_that_cannot_be_evaluated_are_named_and_the_others_scored(tmp_path: Path) -> None:
    system: Any = StandIn()
    result = evaluate(utterances("a", "gone", "long", "b", "deadly"), system, system, GREEDY)
    assert [line["id"] for line in result.hypotheses] == ["a", "b"]
    assert result.scores.overall.utterances == 2 and result.scores.overall.wer == 0.0
    assert {item.id: item.reason for item in result.bad} == {
        "gone": "no such file",
        "long": "1.0 s: 13 positions + 8 new tokens do not fit engines.max_model_len=20",
        "deadly": "no engine can sample it",
    }
    assert result.decoding is not None and result.decoding.audio_seconds == 2.0 and result.decoding.seconds >= 0.0
    store_evaluation(tmp_path / "e.json", result, {})
    stored = json.loads((tmp_path / "e.json").read_text())
    assert stored["time"] == result.decoding.to_json() and not {"rtf", "time"} & stored["summary"].keys()
    assert load_evaluation(tmp_path / "e.json", {}, TranscriptScores) == result


def test_decoding_is_timed_without_the_scoring_and_equal_evaluations_may_differ_in_it() -> None:
    def slow() -> Iterator[list[Group]]:
        for _ in range(3):
            time.sleep(0.02)
            yield []

    watch = Stopwatch()
    for _ in watch.over(slow()):
        measured = watch.seconds
        time.sleep(0.02)
        assert watch.seconds == measured
    assert watch.seconds >= 0.06
    assert Decoding(3.0, 60.0).rtf == 0.05 and Decoding(3.0, 0.0).rtf is None
    system: Any = StandIn()
    once = evaluate(utterances("a"), system, system, GREEDY)
    assert once == replace(once, decoding=Decoding(1e6, 1.0)) == replace(once, decoding=None)
    with_both = with_samples(once, replace(once, decoding=Decoding(9.0, 9.0)))
    assert with_both.decoding == once.decoding, "of the greedy decoding"


def test_before_and_after_are_compared_on_the_utterances_of_both() -> None:
    system: Any = StandIn()
    before = evaluate(utterances("a", "b", "gone"), system, system, GREEDY)
    after = evaluate(utterances("a", "b", "c"), system, system, GREEDY)
    after.hypotheses[2]["hypothesis"] = "nothing of the kind"
    one, other = on_common_utterances(before, replace(after, scores=transcript_scores(after.hypotheses)))
    assert one is before, "which lacks nothing"
    assert other.scores == before.scores and [line["id"] for line in other.hypotheses] == ["a", "b"]
    with pytest.raises(UserError, match="no utterance in common"):
        on_common_utterances(before, evaluate(utterances("c"), system, system, GREEDY))


def test_without_any_that_can_be_evaluated_there_are_no_scores() -> None:
    system: Any = StandIn()
    with pytest.raises(InputError, match="cannot be evaluated") as caught:
        evaluate(utterances("gone", "deadly"), system, system, GREEDY)
    assert len(caught.value.problems) == 2
