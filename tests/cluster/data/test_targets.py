"""What a reward model is told of a manifest, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cluster.config import RunConfig, load_config
from cluster.data.fitness import RECORDING_CHECK, target_check, without_unfit
from cluster.data.targets import diffro_model, new_model, target_problems, targets_of
from cluster.token2text.evaluation import score_predictions
from learner.config import Token2TextModelConfig
from learner.token2text.model import UNKNOWN, Token2Text, Token2TextConfig
from learner.token2text.plan import Prediction, SpeechText
from speech.errors import InputError, UserError
from speech.manifests import Manifest
from speech.manifests.load import Places
from speech.records import Utterance

MODEL = Token2TextConfig(9, tuple(" abc"), {"gender": ("f", "m"), "speaker": ("x", "y")}, hidden=8, layers=1, heads=2)


def manifest(*lines: tuple[str, str | None, Mapping[str, str]], audio: str = "/a.wav") -> Manifest:
    utterances = tuple(
        Utterance(id=str(i), audio=audio, text=text, language="en", speaker=speaker, attributes=attributes)
        for i, (text, speaker, attributes) in enumerate(lines)
    )
    return Manifest(utterances, (), "m.jsonl", "jsonl", Places([("m.jsonl", 0)], np.arange(1, len(lines) + 1)))


def test_targets_come_from_the_line_and_its_attributes() -> None:
    (known, unknown) = manifest(("A b!", "y", {"gender": "f", "mood": "gay"}), ("c", None, {})).utterances
    assert targets_of(MODEL, known).text_ids == (2, 1, 3)
    assert targets_of(MODEL, known).attributes == (0, 1)
    assert targets_of(MODEL, unknown).attributes == (UNKNOWN, UNKNOWN)


def test_every_unknown_text_and_class_is_named_with_its_line() -> None:
    bad = manifest(("a", "x", {"gender": "f"}), ("bed", "z", {"gender": "n"}), ("!", None, {}))
    settings = load_config(None, ["name=n", "model.path=new", "model.codec=c", "data.train=t", "objective=token2text"])
    checks = {"train": [RECORDING_CHECK, target_check(MODEL)]}
    with pytest.raises(InputError) as caught:
        without_unfit(settings, {"train": bad}, checks)
    found = [(p.line, p.key) for p in caught.value.problems]
    assert found == [(2, "text"), (2, "attributes.gender"), (2, "speaker"), (3, "text")]
    assert "d e" in str(caught.value) and "no class 'n'; known: f, m" in str(caught.value)
    with pytest.raises(InputError, match=r"m\.jsonl:1: audio: missing"):
        without_unfit(settings, {"train": manifest(("a", None, {}), audio="")}, checks)


def test_a_new_model_reads_what_the_manifest_holds() -> None:
    data = manifest(("A b!", "y", {"gender": "m"}), ("cab", "x", {"gender": "f"}))
    model = new_model(Token2TextModelConfig(hidden=16, heads=2, attributes=["speaker", "gender"]), 7, data)
    assert (model.speech_vocabulary, model.characters) == (7, (" ", "a", "b", "c"))
    assert model.attributes == {"speaker": ("x", "y"), "gender": ("f", "m")}
    assert not [problem for utterance in data.utterances for problem in target_problems(model, utterance)]
    assert new_model(Token2TextModelConfig(characters="xy"), 7, data).characters == ("x", "y")
    with pytest.raises(UserError, match=r"'rate' needs at least two classes; m\.jsonl has no utterance with it"):
        new_model(Token2TextModelConfig(attributes=["rate"]), 7, data)


def config(folder: Path, *overrides: str) -> RunConfig:
    required = ["name=n", "model.path=m", "model.codec=c", "data.train=t", "objective=diffro"]
    return load_config(None, [*required, f"learner.diffro.reward_model={folder}", *overrides])


def test_diffro_refuses_what_its_reward_model_cannot_judge(tmp_path: Path) -> None:
    Token2Text(MODEL).save(tmp_path / "with")
    Token2Text(Token2TextConfig(9, tuple(" abc"), hidden=8, layers=1, heads=2)).save(tmp_path / "without")
    diffro_model(config(tmp_path / "with"), manifest(("a", None, {})))
    diffro_model(config(tmp_path / "with", "learner.diffro.attributes=1"), manifest(("a", None, {"gender": "f"})))
    with pytest.raises(UserError, match=r"no utterance of m\.jsonl says which gender or speaker"):
        diffro_model(config(tmp_path / "with", "learner.diffro.attributes=1"), manifest(("a", None, {})))
    with pytest.raises(UserError, match="judges no attributes"):
        diffro_model(config(tmp_path / "without", "learner.diffro.attributes=1"), manifest(("a", None, {})))


def test_configuration_of_the_objective() -> None:
    required = ["name=n", "model.path=new", "data.train=t", "objective=token2text"]
    with pytest.raises(InputError, match=r"model\.codec: name the codec"):
        load_config(None, required)
    with pytest.raises(InputError, match="multiple of `heads`"):
        load_config(None, [*required, "model.codec=c", "token2text.hidden=65"])
    with pytest.raises(InputError, match="names one twice"):
        load_config(None, [*required, "model.codec=c", "token2text.attributes=[a, a]"])
    assert load_config(None, [*required, "model.codec=c"]).token2text.hidden == 128


def test_scores_of_readings() -> None:
    data = manifest(("ab", None, {"gender": "f"}), ("c a", None, {}), ("b", None, {"gender": "m"}))
    targets = [targets_of(MODEL, u) for u in data.utterances]
    items = [SpeechText((1, 2), t.text_ids, t.attributes) for t in targets]
    readings = [Prediction(1.0, (2, 3), (0, 0)), Prediction(2.0, (4,), (0, 0)), Prediction(float("inf"), (), (0, 0))]
    result = score_predictions(MODEL, data.utterances, items, readings)
    scores = result.scores
    assert scores.nll == pytest.approx(3.0 / 5) and scores.impossible == 1
    assert scores.attributes == {"gender": 0.5, "speaker": None}
    assert scores.overall.wer == pytest.approx(2 / 4)
    assert result.by_id() == {"0": "ab", "1": "c", "2": ""}
    assert list(scores.metrics()) == ["nll", "cer", "wer", "attributes/gender"]
    assert "gender 50.0%" in scores.describe() and "1 texts too long" in scores.describe()
    assert list(scores.to_json())[-3:] == ["nll", "impossible", "attributes"]
    assert type(scores).from_json(scores.to_json()) == scores
