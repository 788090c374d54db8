"""The reward model: soft input, padding, likelihood, files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from learner.token2text.model import UNKNOWN, Token2Text, Token2TextConfig, attribute_nll
from speech.errors import UserError


def tiny(**changes: object) -> Token2Text:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "speech_vocabulary": 11,
        "characters": tuple("ab "),
        "attributes": {"gender": ("female", "male"), "rate": ("slow", "normal", "fast")},
        "hidden": 16,
        "layers": 2,
        "heads": 2,
        "kernel": 3,
    }
    return Token2Text(Token2TextConfig(**(settings | changes))).eval()  # type: ignore[arg-type]


def test_one_hot_and_ids_are_the_same_and_padding_does_not_matter() -> None:
    model = tiny(labels_per_token=2)
    long, short = torch.randint(11, (7,)), torch.randint(11, (4,))
    both = torch.stack([long, torch.nn.functional.pad(short, (0, 3), value=5)])
    together = model(both, torch.tensor([7, 4]))
    alone = model(short[None], torch.tensor([4]))
    torch.testing.assert_close(together.log_probs[1, :8], alone.log_probs[0], atol=1e-5, rtol=1e-5)
    for a, b in zip(together.attributes, alone.attributes, strict=True):
        torch.testing.assert_close(a[1], b[0], atol=1e-5, rtol=1e-5)
    hard = torch.nn.functional.one_hot(both, 11).float()
    torch.testing.assert_close(model(hard, torch.tensor([7, 4])).log_probs, together.log_probs)
    assert together.frames.tolist() == [14, 8]


def test_text_likelihood_is_the_sum_over_alignments() -> None:
    """Brute force: every path of labels that collapses to the text."""
    with torch.no_grad():
        output = tiny()(torch.tensor([[1, 2, 3, 4]]), torch.tensor([4]))
    text = (1, 1)
    total = 0.0
    for path in itertools.product(range(4), repeat=4):
        collapsed = tuple(k for k, _ in itertools.groupby(path) if k != 0)
        if collapsed == text:
            total += float(output.log_probs[0, torch.arange(4), torch.tensor(path)].sum().exp())
    assert float(output.text_log_likelihood([text]).exp()) == pytest.approx(total, rel=1e-5)
    assert output.possible([text]).all()
    too_long = (1, 1, 1)  # needs five frames
    assert not output.possible([too_long]).any()
    assert torch.isinf(output.text_log_likelihood([too_long])).all()


def test_half_precision_layers_give_full_precision_likelihoods() -> None:
    """On a GPU the layers compute in bfloat16, in which there is no CTC."""
    tokens, lengths, text, classes = torch.tensor([[1, 2, 3, 4]]), torch.tensor([4]), [(1, 2)], [(0, 2)]
    full, half = tiny(), tiny().to(torch.bfloat16)
    losses = []
    for model in (full, half):
        output = model(tokens, lengths)
        assert {t.dtype for t in (output.log_probs, *output.attributes)} == {torch.float32}
        loss = -output.text_log_likelihood(text).sum() + attribute_nll(output, classes).sum()
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for (name, a), b in zip(full.named_parameters(), half.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(b.grad.float(), a.grad, rtol=0.1, atol=0.02, msg=name)


def test_gradient_of_soft_tokens_against_finite_differences() -> None:
    model = tiny().double()
    lengths = torch.tensor([5, 3])
    logits = torch.randn(2, 5, 11, dtype=torch.float64, requires_grad=True)

    def loss(values: torch.Tensor) -> torch.Tensor:
        output = model(values.softmax(2), lengths)
        return (attribute_nll(output, [(0, 2), (1, UNKNOWN)]) - output.text_log_likelihood([(1, 2), (3,)])).sum()

    assert torch.autograd.gradcheck(loss, (logits,), eps=1e-6, atol=1e-6)


def test_unknown_attributes_are_left_out() -> None:
    output = tiny()(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    known = attribute_nll(output, [(1, UNKNOWN)])
    torch.testing.assert_close(known, -output.attributes[0].log_softmax(1)[:, 1])
    with pytest.raises(ValueError, match="one class for each of 2"):
        attribute_nll(output, [(1,)])


def test_saved_model_is_the_same(tmp_path: Path) -> None:
    model = tiny()
    model.save(tmp_path / "model")
    again = Token2Text.load(tmp_path / "model")
    assert again.config == model.config
    tokens, lengths = torch.tensor([[3, 1, 4]]), torch.tensor([3])
    assert torch.equal(again(tokens, lengths).log_probs, model(tokens, lengths).log_probs)


def test_texts_become_labels_and_what_is_unknown_is_named() -> None:
    config = tiny().config
    assert config.text_ids("Ab a!", "en") == (1, 2, 3, 1)
    assert config.attribute_ids({"rate": "fast"}) == (UNKNOWN, 2)
    with pytest.raises(UserError, match="not trained on: c d"):
        config.text_ids("abcd", "en")
    with pytest.raises(UserError, match="nothing to say"):
        config.text_ids("...", "en")
    with pytest.raises(UserError, match="no class 'child'; known: female, male"):
        config.attribute_ids({"gender": "child"})


def test_damaged_folders_are_explained(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(UserError, match=r"lacks config\.json"):
        Token2Text.load(folder)
    tiny().save(folder)
    config = folder / "config.json"
    good = json.loads(config.read_text())
    for change, message in (
        ({"hidden": 32}, "weights that config.json describes"),
        ({"kernel": 4}, "`kernel` odd"),
        ({"model_type": "qwen3"}, "not the config of a Token2Text model"),
        ({"colour": 1}, "colour"),
    ):
        config.write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=message):
            Token2Text.load(folder)
    config.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Token2Text.load(folder)
    config.write_text(json.dumps(good))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        Token2Text.load(folder)


def test_speech_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without speech tokens"):
        tiny()(torch.tensor([[1, 2]]), torch.tensor([0]))


def test_tokens_that_sound_alike_begin_alike() -> None:
    torch.manual_seed(0)
    model = tiny()
    size = model.config.speech_vocabulary
    random = model.embedding.weight.detach().clone()
    features = torch.randn(size, 3)
    features[1] = features[0]
    features[-1] = float("nan")
    model.init_embedding_from_codec(features)
    table = model.embedding.weight
    assert torch.equal(table[0], table[1]) and not torch.equal(table[0], table[2])
    assert torch.equal(table[-1], random[-1])
    assert torch.isclose(table[:-1].std(), random.std(), rtol=0.3)
    with pytest.raises(ValueError, match="rows"):
        model.init_embedding_from_codec(features[1:])
