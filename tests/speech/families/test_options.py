"""Options of a family, as `load_family` takes them from a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech.errors import UserError
from speech.families import load_family
from speech.families.hearing.qwen3_asr import Qwen3ASRFamily
from speech.records import Utterance
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen") / "model")


def prompt(folder: Path, language: str | None, **options: object) -> str:
    family = load_family(folder, options=options)
    assert isinstance(family, Qwen3ASRFamily)
    utterance = Utterance(id="u", audio="u.wav", text="hallo", language=language)
    written = family.tokenizer.decode(list(family.layout(utterance, 1).token_ids))
    target = family.tokenizer.decode(family.target_ids(utterance))
    # What the prompt says of the language, the response does not say again.
    assert ("<asr_text>" in written) != ("<asr_text>" in target)
    return written.partition("assistant\n")[2]


def test_a_language_can_be_forced_on_all_or_taken_from_the_utterance(qwen: Path) -> None:
    assert prompt(qwen, "de") == ""
    assert prompt(qwen, "de", force_language=True) == "language German<asr_text>"
    assert prompt(qwen, None, force_language=True) == ""
    assert prompt(qwen, None, force_language="en") == "language English<asr_text>"
    assert prompt(qwen, "de", force_language="en") == "language English<asr_text>"


def test_wrong_options_are_named(qwen: Path, demo_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"'qwen3_asr' has no option 'force_langage'; did you mean 'force_language'\?"):
        load_family(qwen, options={"force_langage": True})
    with pytest.raises(UserError, match=r"force_language is 'xx'; give true, false or one of ar, "):
        load_family(qwen, options={"force_language": "xx"})
    with pytest.raises(UserError, match="force_language is 1;"):
        load_family(qwen, options={"force_language": 1})
    with pytest.raises(UserError, match=r"'demo' has no option 'x'; the family has none"):
        load_family(demo_checkpoint, "demo", {"x": 1})
