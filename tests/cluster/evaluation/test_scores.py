"""The files and metrics that scores end in: users and benchmarks read them by these names, in this order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import load_config
from cluster.evaluation.hallucinations import Hallucinations
from cluster.evaluation.result import FINGERPRINT, Evaluation, load_evaluation, store_evaluation
from cluster.evaluation.scores import Scores, SpeechScores, TranscriptScores
from cluster.evaluation.speech import speech_scores
from cluster.evaluation.written import WrittenRates
from cluster.token2text import run as token2text_run
from cluster.token2text.run import Token2TextRun
from cluster.training import policy_run
from cluster.training.policy_run import PolicyRun
from speech.edits import TranscriptPair, corpus_rates
from speech.errors import UserError
from speech.manifests import Manifest
from tests.cluster.evaluation.test_speech import report

RATES = [
    "wer",
    "wer_low",
    "wer_high",
    "cer",
    "cer_low",
    "cer_high",
    "sentence_error_rate",
    "sub",
    "del",
    "ins",
    "words",
    "utterances",
]
WRITTEN = ["wer_c", "wer_pc", "per", "hallucinations"]
SPEECH = [
    "wer",
    "wer_mean",
    "wer_capped",
    "wer_second",
    "wer_second_mean",
    "speaker_similarity",
    "speaker_similarity_original",
    "duration_mean",
    "f0_std",
    "no_stop_rate",
    "utterances",
    "failed",
    "normaliser",
]
LATER = [
    "wer_seed_tts",
    "wer_seed_tts_second",
    "f0_mean",
    "dnsmos",
    "characters_per_second",
    "words_per_second",
    "failures",
]


def transcripts() -> TranscriptScores:
    # "del" is a language of ISO 639 too, and its code is no number of edits.
    pairs = [TranscriptPair("red light on", "red lamp", "en"), TranscriptPair("stop", "stop it", "del")]
    overall, languages = corpus_rates(pairs)
    return TranscriptScores(overall=overall, languages=languages, normaliser="rules 1", wer_whisper=0.5)


def test_the_json_of_transcripts() -> None:
    scores = transcripts()
    content = scores.to_json()
    assert list(content) == [*RATES, "languages", "normaliser", "wer_whisper", *WRITTEN]
    assert list(content["languages"]) == ["del", "en"] and list(content["languages"]["del"]) == RATES
    assert (content["sub"], content["del"], content["ins"], content["words"]) == (1, 1, 1, 4)
    assert scores.metrics() == {"wer": 0.75, "cer": content["cer"]}
    both = replace(scores, sampled=scores)
    assert both.to_json() == content | {"sampled": content} and list(both.to_json())[-1] == "sampled"
    assert list(both.metrics()) == ["wer", "cer", "sampled/wer", "sampled/cer"]


def test_the_json_of_speech() -> None:
    content = speech_scores([report()]).to_json()
    assert list(content) == [*SPEECH, *LATER]
    similar = ["speaker_similarity", "speaker_similarity_original"]
    names = ["wer", "wer_capped", "wer_second", *similar, "duration_mean", "no_stop_rate"]
    assert list(speech_scores([report()]).metrics()) == names
    failed = speech_scores([report(edits=None, speaker_similarity=None, speaker_similarity_original=None)])
    assert list(failed.to_json()) == [*SPEECH, *LATER] and failed.to_json()["wer"] is None
    assert list(failed.metrics()) == ["wer_capped", "wer_second", "duration_mean", "no_stop_rate"]


def test_transcripts_of_an_earlier_release_are_read() -> None:
    scores = replace(
        transcripts(), written=WrittenRates(0.1, 0.2, 0.3), hallucinations=Hallucinations({"u": "loop"}, 9.0)
    )
    content = scores.to_json()
    assert TranscriptScores.from_json(json.loads(json.dumps(content))) == scores
    for name in WRITTEN:
        del content[name]
    assert TranscriptScores.from_json(content) == transcripts()


def test_speech_of_an_earlier_release_is_read() -> None:
    scores = speech_scores([report()])
    content = scores.to_json()
    del content["wer_capped"], content["speaker_similarity_original"]
    older = replace(scores, wer_capped=None, speaker_similarity_original=None)
    assert SpeechScores.from_json(content) == older
    for name in LATER:
        del content[name]
    read = SpeechScores.from_json(content)
    assert read == replace(older, **{name: {} if name == "failures" else None for name in LATER})
    del content["wer"]
    with pytest.raises(KeyError, match="wer"):
        SpeechScores.from_json(content)


@pytest.mark.parametrize(
    "scores", [transcripts(), replace(transcripts(), sampled=transcripts()), speech_scores([report(edits=None)])]
)
def test_an_evaluation_is_read_back_as_it_was(scores: Scores, tmp_path: Path) -> None:
    path, kept = tmp_path / "evaluation-before.json", Evaluation(scores, [{"id": "ü", "hypothesis": "灯"}])
    assert load_evaluation(path, {}, type(scores)) is None
    store_evaluation(path, kept, {"model": "/m"})
    assert load_evaluation(path, {"model": "/m"}, type(scores)) == kept
    assert load_evaluation(path, {"model": "/other"}, type(scores)) is None
    # Written by an earlier release, which did not know the content of the manifest.
    assert load_evaluation(path, {"model": "/m", FINGERPRINT: "a"}, type(scores)) == kept
    store_evaluation(path, kept, {"model": "/m", FINGERPRINT: "a"})
    assert load_evaluation(path, {"model": "/m", FINGERPRINT: "a"}, type(scores)) == kept
    assert load_evaluation(path, {"model": "/m", FINGERPRINT: "b"}, type(scores)) is None
    assert list(json.loads(path.read_text(encoding="utf-8"))) == ["conditions", "summary", "rejected", "hypotheses"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"conditions": {}}', '{"conditions": {}, "summary": {"wer": 0}}'])
def test_a_damaged_evaluation_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluation-before.json"
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(UserError, match=r"evaluation-before\.json: damaged"):
        load_evaluation(path, {}, SpeechScores)


def test_an_evaluation_by_other_rules_of_text_is_not_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run: Any = SimpleNamespace(
        config=load_config("configs/asr_demo.yaml", []),
        manifests={"test": Manifest((), (), "test.jsonl", "jsonl")},
    )
    path, kept = tmp_path / "evaluation-before.json", Evaluation(transcripts(), [])
    store_evaluation(path, kept, PolicyRun.conditions(run))
    assert load_evaluation(path, PolicyRun.conditions(run), TranscriptScores) == kept
    for module in (policy_run, token2text_run):
        monkeypatch.setattr(module, "NORMALISER_VERSION", "rules 0")
    assert load_evaluation(path, PolicyRun.conditions(run), TranscriptScores) is None
    assert Token2TextRun.conditions(run)["normaliser"] == "rules 0"
