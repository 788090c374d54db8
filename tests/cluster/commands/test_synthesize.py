"""`speechrl synthesize`: what it writes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from cluster import cli
from cluster.commands.synthesize import sample_ids, synthesise
from speech.codecs import Codec, load_codec
from speech.errors import UserError
from speech.families.demo.speaking import DemoTTSFamily
from tests.speech.codecs.test_snac import write_snac
from tests.speech.families.tts_checkpoints import write_demo_tts, write_orpheus

CODEC = Path("assets/tts_codec")
TEXT = "turn on the light"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights that speaks the embedded codec's tokens, and a voice."""
    folder = tmp_path_factory.mktemp("synthesize")
    write_demo_tts(folder / "model", codec_size=load_codec(CODEC).size, scale=1.0)
    voice(folder / "voice.wav")
    return folder


@pytest.fixture(scope="module")
def family(folder: Path) -> DemoTTSFamily:
    return DemoTTSFamily(folder / "model")


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return load_codec(CODEC)


def voice(path: Path, seconds: float = 1.0, rate: int = 16_000, amplitude: float = 0.3) -> Path:
    times = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * 140 * k * times) / k for k in range(1, 8))
    soundfile.write(path, (amplitude * wave / 3).astype(np.float32), rate)
    return path


def arguments(folder: Path, out: Path, *more: str, text: str = TEXT, voice: Path | None = None) -> list[str]:
    given = {"--model": folder / "model", "--codec": CODEC, "--text": text, "-o": out}
    given["--voice"] = voice or folder / "voice.wav"
    return ["synthesize", *(str(part) for pair in given.items() for part in pair), "--max-new-tokens", "24", *more]


def test_it_writes_a_sound_file_and_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out.wav"
    assert cli.main(arguments(folder, out)) == 0
    wave, rate = soundfile.read(out)
    assert rate == load_codec(CODEC).sample_rate and len(wave) > 0 and np.abs(wave).max() > 1e-3
    assert str(out) in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["out.wav"]
    assert cli.main(arguments(folder, out)) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main(arguments(folder, out, "--force", "--seed", "1")) == 0


def test_the_seed_decides(family: DemoTTSFamily, codec: Codec, folder: Path) -> None:
    voice = str(folder / "voice.wav")
    first, again, other = (synthesise(family, codec, TEXT, voice, seed=seed, max_new_tokens=24) for seed in (0, 0, 1))
    assert first.tokens == again.tokens != other.tokens
    assert np.array_equal(first.wave, again.wave)


def test_greedy_takes_the_likeliest_of_speech_and_stop(family: DemoTTSFamily, codec: Codec, folder: Path) -> None:
    prompt = _prompt(family, codec, folder)
    sampled = sample_ids(family, family.load_language_model(), prompt, temperature=0.0, seed=0, max_new_tokens=12)
    ids = list(prompt)
    model, allowed = family.load_language_model(), list(family.allowed_token_ids)
    free = []
    for _ in sampled:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        free.append(int(logits.argmax()))
        ids.append(allowed[int(logits[allowed].argmax())])
    assert ids[len(prompt) :] == sampled
    assert any(token not in allowed for token in free)  # the mask mattered
    assert len(sampled) == 12 or sampled[-1] in family.stop_token_ids


def test_a_voice_of_another_rate_is_resampled(
    family: DemoTTSFamily, codec: Codec, folder: Path, tmp_path: Path
) -> None:
    spoken = synthesise(family, codec, TEXT, str(voice(tmp_path / "v.wav", rate=44_100)), max_new_tokens=24)
    assert len(spoken.tokens) > 0 and len(spoken.wave) > 0


def _prompt(family: DemoTTSFamily, codec: Codec, folder: Path) -> tuple[int, ...]:
    from speech.audio import load_audio
    from speech.records import Utterance

    wave = load_audio(Utterance(id="", audio=str(folder / "voice.wav"), text=""), codec.sample_rate)
    return family.layout(TEXT, "", codec.encode([wave])[0]).token_ids


def corrupt(path: Path) -> Path:
    path.write_bytes(b"RIFF this is no sound")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no such file"),
        (corrupt, "cannot be decoded"),
        (lambda path: voice(path, seconds=0.02), "0.02 s is shorter"),
        (lambda path: voice(path, seconds=70.0), "longer than"),
        (lambda path: voice(path, amplitude=0.0), "is silent"),
    ],
)
def test_bad_voices(
    make: Callable[[Path], Path], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(folder, tmp_path / "out.wav", voice=make(tmp_path / "v.wav"))) == 2
    error = capsys.readouterr().err
    assert message in error and "v.wav" in error
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    ("more", "text", "message"),
    [
        ([], "включи свет", "CYRILLIC"),
        ([], " ", "is empty"),
        (["--temperature", "-1"], TEXT, "--temperature must be at least 0"),
        (["--max-new-tokens", "0"], TEXT, "--max-new-tokens must be at least 1"),
        (["-o", "out.txt"], TEXT, "must end in .wav"),
        (["--model", "assets/asr_demo"], TEXT, "does not speak"),
        ([], "turn on the light " * 2000, "take a shorter voice or text"),
    ],
)
def test_bad_input(
    more: list[str], text: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(folder, tmp_path / "out.wav", *more, text=text)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_a_model_that_stops_at_once_is_an_error(
    family: DemoTTSFamily, codec: Codec, folder: Path, tmp_path: Path
) -> None:
    """The stop token's output row is turned towards the prompt's last state, which it is itself no part of."""
    write_demo_tts(tmp_path / "mute", codec_size=codec.size)
    prompt = torch.tensor([_prompt(family, codec, folder)])
    with torch.no_grad():
        state = family.load_language_model()(prompt, output_hidden_states=True).hidden_states[-1][0, -1]
    weights = load_file(tmp_path / "mute" / "model.safetensors")
    weights["model.embed_tokens.weight"][family.stop_token_ids[0]] = 100 * state
    save_file(weights, tmp_path / "mute" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="without a single speech token"):
        synthesise(DemoTTSFamily(tmp_path / "mute"), codec, TEXT, str(folder / "voice.wav"))


def test_tokens_that_make_no_sound_together_are_no_crash(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random Orpheus does not keep the places of SNAC's frames."""
    write_orpheus(tmp_path / "model", codebook=16)
    write_snac(tmp_path / "codec")
    out = tmp_path / "out.wav"
    more = ("--codec", str(tmp_path / "codec"), "--model", str(tmp_path / "model"), "--voice-text", "good day")
    assert cli.main(arguments(folder, out, *more)) == 2
    assert "cannot be decoded: tokens of utterance 0: id" in capsys.readouterr().err
    assert not out.exists()
