"""The embedded corpus and tokenizer are what their builders promise."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from assets.build import acoustics, grammar, opus, texts, tokenizer
from assets.build.speech import SPLITS
from assets.build.voices import PRETRAIN, SFT, TRAIN, NeuralVoice, Voice

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "assets" / "speech"
SIZES = {"sft": 2400, "train": 1600, "valid": 160, "test": 440}
CAP_BYTES = 13_500_000

Manifests = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return {
        split: [json.loads(line) for line in (CORPUS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SIZES
    }


def test_manifests_have_the_promised_sizes_and_fields(manifests: Manifests) -> None:
    required = {"id", "audio", "text", "language", "speaker", "duration"}
    for split, lines in manifests.items():
        assert len(lines) == SIZES[split]
        for line in lines:
            assert required <= set(line) <= required | {"keywords"}, line["id"]
            assert line["language"] in ("en", "zh")
            assert all(keyword in line["text"] for keyword in line.get("keywords", ()))
    assert sum(line["language"] == "en" for line in manifests["test"]) >= 400


def test_ids_are_unique_and_every_file_belongs_to_one_line(manifests: Manifests) -> None:
    lines = [line for split in manifests.values() for line in split]
    assert len({line["id"] for line in lines}) == len(lines)
    on_disk = {path.relative_to(CORPUS).as_posix() for path in (CORPUS / "audio").rglob("*.opus")}
    assert {line["audio"] for line in lines} == on_disk
    assert len(on_disk) == len(lines)


def test_no_sentence_is_in_two_splits(manifests: Manifests) -> None:
    for one, other in combinations(SIZES, 2):
        assert not {line["text"] for line in manifests[one]} & {line["text"] for line in manifests[other]}


def test_valid_and_test_have_their_own_voices(manifests: Manifests) -> None:
    speakers = {split: {line["speaker"] for line in lines} for split, lines in manifests.items()}
    assert speakers["sft"] < speakers["train"]
    for held_out in ("valid", "test"):
        for other in set(SIZES) - {held_out}:
            assert not speakers[held_out] & speakers[other]


def test_held_out_voices_have_their_own_timbre() -> None:
    casts = {split.name: split.voices for split in SPLITS} | {"pretrain": PRETRAIN}
    timbres = {split: {voice.name.rsplit("-", 1)[-1] for voice in voices} for split, voices in casts.items()}
    assert set(SFT) < set(TRAIN)
    assert not timbres["test"] & (timbres["train"] | timbres["valid"])
    assert not timbres["valid"] & timbres["train"]
    assert not timbres["pretrain"] & (timbres["test"] | timbres["valid"])
    assert not _stretches(PRETRAIN) & (_stretches(casts["test"]) | _stretches(casts["valid"]))


def _stretches(voices: tuple[Voice, ...]) -> set[float]:
    return {voice.formants for voice in voices if isinstance(voice, NeuralVoice)}


def test_no_shipped_sentence_was_said_in_pretraining(manifests: Manifests) -> None:
    pretraining = {sentence.text for sentence in texts.pretraining(1)}
    assert len(pretraining) == texts.PRETRAINING_SIZE
    for lines in manifests.values():
        assert not {line["text"] for line in lines} & pretraining


def test_the_corpus_says_the_sentences_of_its_builder(manifests: Manifests) -> None:
    said = [texts.general(1)[0], *texts.household(1, [SIZES[split] for split in ("train", "valid", "test")])]
    for lines, sentences in zip(manifests.values(), said, strict=True):
        assert [line["text"] for line in lines] == [sentence.text for sentence in sentences]


def test_audio_is_sound_of_the_stated_duration(manifests: Manifests) -> None:
    lines = [line for split in manifests.values() for line in split]
    for line in random.Random(0).sample(lines, 20):
        waveform, rate = soundfile.read(CORPUS / line["audio"], dtype="float32")
        assert rate == acoustics.SAMPLE_RATE and waveform.ndim == 1
        assert abs(len(waveform) / rate - line["duration"]) <= 0.0005
        assert -30 < 20 * np.log10(acoustics.rms(waveform)) < -18  # dBFS; the codec moves it a little
        assert np.abs(waveform).max() < 1.0


def test_the_corpus_stays_small(manifests: Manifests) -> None:
    total = sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file())
    assert total <= CAP_BYTES
    statistics = json.loads((CORPUS / "stats.json").read_text(encoding="utf-8"))
    assert {split: record["utterances"] for split, record in statistics["splits"].items()} == SIZES


def test_the_grammar_keeps_its_lengths_and_varies() -> None:
    rng = random.Random(3)
    sentences = [grammar.english(rng) for _ in range(1000)]
    lengths = [len(sentence.text.split()) for sentence in sentences]
    assert min(lengths) >= grammar.MIN_WORDS and max(lengths) <= grammar.MAX_WORDS
    assert 5 <= np.mean(lengths) <= 6
    assert len({sentence.text for sentence in sentences}) > 900
    assert 250 <= len(grammar.vocabulary()) <= 350
    assert {word for sentence in sentences for word in sentence.text.split()} <= set(grammar.vocabulary())


def test_the_grammar_follows_its_seed() -> None:
    first, again, other = (grammar.deal([50, 10], 0.08, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_opus_files_are_reproducible_and_compact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    waveform = acoustics.set_level(acoustics.pink(16_001, rng), -23)
    for name in ("one.opus", "two.opus"):
        decoded = opus.write(tmp_path / name, waveform, stream=7, compression_level=0.98)
        assert len(decoded) == len(waveform)
    assert (tmp_path / "one.opus").read_bytes() == (tmp_path / "two.opus").read_bytes()
    assert (tmp_path / "one.opus").stat().st_size < 1900


def test_noise_has_the_level_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    speech = np.sin(np.arange(16_000) / 8).astype(np.float32)
    mixed = acoustics.mix(speech, acoustics.white(len(speech), rng), snr_db=10)
    assert 20 * np.log10(acoustics.rms(speech) / acoustics.rms(mixed - speech)) == pytest.approx(10, abs=0.2)
    assert np.abs(acoustics.set_level(mixed, 0)).max() <= acoustics.PEAK + 1e-6


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return tokenizer.train(tokenizer.training_texts(1))


def test_the_tokenizer_gives_back_what_it_was_given(trained: PreTrainedTokenizerFast, manifests: Manifests) -> None:
    texts = [line["text"] for line in manifests["test"]]
    for text in [*texts, "", " a  b ", "Ünïcode, 42% — 龙 🎧", "don't . stop"]:
        assert trained.decode(trained(text)["input_ids"]) == text


def test_the_tokenizer_has_the_agreed_ids(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    assert len(trained) == tokenizer.VOCABULARY_SIZE
    assert trained.convert_tokens_to_ids(tokenizer.SPECIAL_TOKENS) == list(range(6))
    assert (trained.pad_token_id, trained.eos_token_id) == (0, 1)
    prompt = "<|audio_start|><|audio|><|audio_end|><|transcribe|>call anna<|endoftext|>"
    ids = trained(prompt)["input_ids"]
    assert ids[:4] == [3, 2, 4, 5] and ids[-1] == 1
    assert trained.decode(ids, skip_special_tokens=True) == "call anna"
    trained.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(prompt)["input_ids"] == ids


def test_the_embedded_tokenizer_is_the_one_its_builder_makes(trained: PreTrainedTokenizerFast) -> None:
    embedded = AutoTokenizer.from_pretrained(ROOT / "assets" / "tokenizer")
    assert embedded.get_vocab() == trained.get_vocab()
