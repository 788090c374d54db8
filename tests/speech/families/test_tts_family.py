"""What all TTS families keep, and the demo family's own prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from assets.build.tts_model import initialise_demo_tts
from speech.errors import InputError, UserError
from speech.families import ModelFamily, SpeechFamily, load_family
from speech.families.causal import CausalSpeechFamily
from speech.families.demo.speaking import SECTION
from tests.speech.families.tts_checkpoints import OPTIONS, WRITERS, write_demo_tts, write_llasa

SIZES = {"orpheus": 21, "cosyvoice3": 6561}
"""Speech tokens of the checkpoints where they are not 20."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name) / "model") for name, write in WRITERS.items()}


@pytest.fixture(scope="module", params=list(WRITERS))
def family(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> CausalSpeechFamily:
    """Each family, found by its `config.json` alone."""
    found = load_family(checkpoints[request.param], options=OPTIONS.get(request.param))
    assert found.name == request.param and isinstance(found, CausalSpeechFamily)
    return found


@pytest.fixture(scope="module")
def demo(checkpoints: dict[str, Path]) -> CausalSpeechFamily:
    found = load_family(checkpoints["demo_tts"])
    assert isinstance(found, CausalSpeechFamily)
    return found


def spoken(family: CausalSpeechFamily, *tokens: int) -> list[str]:
    """The names of codec tokens in the model's vocabulary."""
    return [family.speech_token.format(family.first_speech_token + token) for token in tokens]


def complaints(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InputError) as caught:
        call()
    return [f"{problem.key}: {problem.message}" for problem in caught.value.problems]


def test_only_speech_and_one_stop_token_may_be_sampled(family: CausalSpeechFamily) -> None:
    assert len(family.stop_token_ids) == 1
    allowed = family.tokenizer.convert_ids_to_tokens(list(family.allowed_token_ids))
    assert sorted(allowed) == sorted([*spoken(family, *range(len(family.speech_ids))), family.stop_token])
    assert len(family.speech_ids) == SIZES.get(family.name, 20)
    assert list(family.allowed_token_ids) == sorted(family.allowed_token_ids)


@settings(max_examples=30)
@given(tokens=st.lists(st.integers(0, 19)))
def test_target_and_speech_tokens_are_inverse(family: SpeechFamily, tokens: list[int]) -> None:
    target = family.target_ids(tokens)
    assert target[-1] in family.stop_token_ids
    assert set(target) <= set(family.allowed_token_ids)
    assert family.speech_tokens(target) == tokens
    assert family.parse_output(target) == ("", None)


def test_tokens_of_another_kind_are_refused(family: SpeechFamily) -> None:
    with pytest.raises(ValueError, match="neither speech nor stop"):
        family.speech_tokens([family.speech_ids.start, 5])
    size = len(family.speech_ids)
    for wrong in (-1, size):
        with pytest.raises(ValueError, match=rf"speech token {wrong} is none of the model's 0 … {size - 1}"):
            family.target_ids([0, wrong])
        with pytest.raises(ValueError, match=rf"speech token {wrong} is none"):
            family.layout("hello", "good day", [0, wrong])


def test_a_prompt_is_all_tokens_and_asks_for_speech(family: CausalSpeechFamily) -> None:
    layout = family.layout("turn on the light", "good day", [3, 1, 4])
    assert layout.audio_length == 0 and all(layout.is_token)
    written = family.tokenizer.decode(list(layout.token_ids))
    assert ("tˈɜːn ɔnðə lˈaɪt" if family.name == "neutts" else "turn on the light") in written
    assert "".join(spoken(family, 3, 1, 4)) in written
    other = family.layout("turn on the light", "good day", [3, 1, 5])
    assert layout.token_ids != other.token_ids


def test_a_text_must_be_readable(family: CausalSpeechFamily) -> None:
    assert complaints(lambda: family.layout("  ", "good day", [1])) == ["text: is empty"]
    half = "text: holds half of a UTF-16 pair (U+DCE9): it cannot be written as UTF-8"
    assert complaints(lambda: family.layout("caf\udce9", "good day", [1])) == [half]
    found = complaints(lambda: family.layout(f"a {spoken(family, 3)[0]} b", "good day", [1]))
    # The demo has not even learned the characters of which a control token is written.
    assert found[0].startswith("text: cannot be read" if family.name == "demo_tts" else "text: holds the control token")


def test_a_text_holds_no_orders_to_the_model(family: CausalSpeechFamily) -> None:
    # Another alphabet than that of the demo's tokens, in which `<` cannot be read.
    assert {family.stop_token, *family.markers, *spoken(family, 0)} <= set(family.control_tokens.values())
    for token in (family.stop_token, *spoken(family, 3), *family.markers):
        found = complaints(lambda token=token: family.layout(f"hello {token}", "good day", [1]))
        cannot = "text: cannot be read by the model: '<' (U+003C LESS-THAN SIGN)"
        assert found[0] == (cannot if family.name == "demo_tts" else f"text: holds the control token {token}")


def test_an_instruction_is_not_read_aloud(family: CausalSpeechFamily) -> None:
    """A tokenizer without the mark would spell it, and the instruction would be part of the text."""
    if family.name in ("cosyvoice2", "cosyvoice3"):
        return  # tests/speech/families/test_cosyvoice2.py and test_cosyvoice3.py
    assert complaints(lambda: family.layout("softly<|endofprompt|>hello", "good day", [1])) == [
        "text: holds an instruction (before <|endofprompt|>), which the model does not take"
    ]


def test_the_demo_names_every_character_it_has_not_learned(demo: SpeechFamily) -> None:
    found = complaints(lambda: demo.layout("открой 7 lights", "", []))
    assert found[0] == "text: cannot be read by the model: 'о' (U+043E CYRILLIC SMALL LETTER O)"
    assert found[-1] == "text: cannot be read by the model: '7' (U+0037 DIGIT SEVEN)"
    assert len(found) == 6  # о т к р й 7
    assert complaints(lambda: demo.layout("...", "", [])) == ["text: leaves nothing to be spoken: '...'"]


def test_the_demo_reads_what_it_was_trained_on(demo: SpeechFamily) -> None:
    plain = demo.layout("turn on the light", "", [1, 2])
    assert demo.layout(" Turn on  the light! ", "", [1, 2]) == plain
    assert demo.tokenizer.decode(list(plain.token_ids)) == (
        "<|voice_start|><|s_1|><|s_2|><|text_start|>turn on the light<|speech_start|>"
    )
    # The voice is cut to max_voice_tokens, and its words are not used.
    assert demo.layout("a", "x", [1, 2, 3, 4, 5, 6]) == demo.layout("a", "y", [1, 2, 3, 4])


def test_a_tokenizer_without_an_alphabet_names_what_it_lacks(tmp_path: Path) -> None:
    """Word-piece and similar tokenizers turn what they do not know into one unknown token, silently."""
    folder = write_llasa(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    lost = [token for token in content["model"]["vocab"] if token in ("Ð", "q")]
    for token in lost:
        del content["model"]["vocab"][token]
    content["model"]["merges"] = [m for m in content["model"]["merges"] if not {"Ð", "q"} & set("".join(m))]
    content["model"]["vocab"] = {t: i for t, i in content["model"]["vocab"].items() if not {"Ð", "q"} & set(t)}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    family = load_family(folder)
    assert isinstance(family, SpeechFamily)
    assert complaints(lambda: family.layout("quiet", "", [])) == [
        "text: cannot be read by the model: 'q' (U+0071 LATIN SMALL LETTER Q)"
    ]


@pytest.mark.family_check("export")
def test_an_export_is_a_plain_model_that_holds_the_new_weights(family: CausalSpeechFamily, tmp_path: Path) -> None:
    old = family.load_language_model()
    new = {name: parameter + 1 for name, parameter in old.named_parameters()}
    family.export(tmp_path / "new", {"language_model": new})
    again = load_family(tmp_path / "new")
    assert (type(again), again.stop_token_ids) == (type(family), family.stop_token_ids)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32)
    stored = family._stored_dtype
    for name, parameter in model.named_parameters():
        expected = new[name].to(stored).float()
        if family.name == "cosyvoice3" and len(expected) == len(new["model.embed_tokens.weight"]):
            rows = [i for i in range(len(expected)) if i not in family.second_names]
            parameter, expected = parameter[rows], expected[rows]  # tests/speech/families/test_cosyvoice3.py
        assert torch.equal(parameter, expected), name
    text = f"hello {spoken(family, 4)[0]}"
    assert AutoTokenizer.from_pretrained(tmp_path / "new").encode(text) == family.tokenizer.encode(text)
    with pytest.raises(UserError, match="exists already"):
        family.export(tmp_path / "new", {})
    with pytest.raises(ValueError, match="no part 'adaptor'"):
        family.export(tmp_path / "other", {"adaptor": {}})
    with pytest.raises(ValueError, match="has shape"):
        family.export(tmp_path / "other", {"language_model": {"model.norm.weight": torch.ones(3)}})
    assert not (tmp_path / "other").exists()


@pytest.mark.family_check("logits")
def test_logits_are_those_of_plain_transformers(family: CausalSpeechFamily, tmp_path: Path) -> None:
    """Of the checkpoint, and of an export of changed weights in the checkpoint's own type."""
    own = family.load_language_model()
    ids = torch.tensor([[*family.layout("hello", "good day", [1, 2]).token_ids, *family.target_ids([3, 4])]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(family.path, dtype=torch.float32)
        assert torch.equal(own(ids).logits, plain(ids).logits)
        for parameter in own.parameters():
            parameter.mul_(1.25).copy_(parameter.to(family._stored_dtype))
        family.export(tmp_path / "new", {"language_model": dict(own.named_parameters())})
        new = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32)
        allowed = list(family.allowed_token_ids)
        assert torch.equal(own(ids).logits[..., allowed], new(ids).logits[..., allowed])
        assert not torch.allclose(plain(ids).logits, new(ids).logits, atol=0.1)


def test_the_engine_is_sent_what_its_folder_holds(family: CausalSpeechFamily, tmp_path: Path) -> None:
    family.write_engine_model(tmp_path / "engine")
    engine = AutoModelForCausalLM.from_pretrained(tmp_path / "engine", dtype=torch.float32)
    own = family.load_language_model()
    sent = {family.engine_name(name) for name, _ in own.named_parameters()}
    assert sent == {name for name, _ in engine.named_parameters()}
    ids = torch.tensor([family.layout("hello", "good day", [1, 2]).token_ids])
    with torch.no_grad():
        torch.testing.assert_close(engine(ids).logits, own(ids).logits)


def test_defects_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    folder = write_demo_tts(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def rewrite(section: dict[str, object] | None) -> None:
        content = (
            {**config, SECTION: section} if section is not None else {k: v for k, v in config.items() if k != SECTION}
        )
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")

    rewrite({**config[SECTION], "codec_size": 21})
    with pytest.raises(UserError, match=r"codec_size is 21, the tokenizer has 20 speech tokens"):
        load_family(folder)
    rewrite({"codec": "demo"})
    with pytest.raises(UserError, match=f"{SECTION} lacks codec_size, max_voice_tokens, characters"):
        load_family(folder)
    rewrite(None)
    with pytest.raises(UserError, match="no model family for model_type 'qwen3'"):
        load_family(folder)
    with pytest.raises(UserError, match="not of the family 'demo_tts'"):
        load_family(folder, "demo_tts")
    rewrite(config[SECTION])
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("<|speech_end|>", "<|speech_fin|>"), encoding="utf-8")
    with pytest.raises(UserError, match=r"lacks <\|speech_end\|>"):
        load_family(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        load_family(folder)


def test_families_of_one_model_type_are_told_apart_by_their_tokens(tmp_path: Path) -> None:
    folder = write_llasa(tmp_path / "model")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("SPEECH_GENERATION_END", "SPEECH_FIN"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_family(folder)
    assert "name the family (model.family)" in str(caught.value)
    assert "llasa: lacks <|SPEECH_GENERATION_END|>" in str(caught.value)
    assert "orpheus: lacks <custom_token_10>" in str(caught.value)


def test_initialisation_is_a_function_of_its_seed(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        initialise_demo_tts(None, tmp_path / name, 16, seed, codec="demo", hidden_size=64, layers=1)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1) != weights("c", 2)
    family = load_family(tmp_path / "a")
    assert isinstance(family, SpeechFamily)
    ids = family.layout("ab c", "", []).token_ids
    assert len(ids) == 3 + len("ab c")  # one token a byte


def test_options_are_those_of_the_family(checkpoints: dict[str, Path], demo_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"'demo_tts' has no option 'force_language'; the family has none"):
        load_family(checkpoints["demo_tts"], options={"force_language": True})
    assert isinstance(load_family(demo_checkpoint, options={}), ModelFamily)
