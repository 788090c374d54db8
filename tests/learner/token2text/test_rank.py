"""Training the reward model: it learns, and neither ranks nor micro-batches matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import LearnerConfig, Token2TextTrainingConfig
from learner.token2text.model import Token2Text, Token2TextConfig, Token2TextOutput
from learner.token2text.plan import Prediction, SpeechText, plan_predictions, plan_token2text, split_items
from learner.token2text.rank import Token2TextRank, Token2TextSpec
from tests.learner.ranks import assert_same_update, keep_gradients, run_ranks

CONFIG = Token2TextConfig(
    12, tuple("abc"), {"pitch": ("low", "high")}, hidden=32, layers=2, heads=2, kernel=5, labels_per_token=1
)


def corpus(count: int, seed: int = 0) -> list[SpeechText]:
    """A language in which character c is spoken as two tokens 3c, 3c + 1 or 3c, 3c + 2: the pitch decides which."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        length, pitch = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 7), (0, 2)))
        text = torch.randint(1, 4, (length,), generator=generator).tolist()
        tokens = [token for label in text for token in (3 * (label - 1), 3 * (label - 1) + 1 + pitch)]
        items.append(SpeechText(tuple(tokens), tuple(text), (pitch if length > 2 else -1,)))
    return items


def spec(training: Token2TextTrainingConfig | None = None, **changes: Any) -> Token2TextSpec:
    learner: dict[str, Any] = {"threads": 1, "lr": 4e-3, "max_grad_norm": 1.0} | changes
    return Token2TextSpec(CONFIG, LearnerConfig(**learner), training or Token2TextTrainingConfig(), 100, seed=1)


def one_update(rank: int, world: int, meeting: str, chosen: Token2TextSpec, out: str | None = None) -> dict[str, Any]:
    learner = Token2TextRank(chosen, rank, world, f"file://{meeting}")
    gradients = keep_gradients(learner.model, learner.optimiser)
    share = plan_token2text(corpus(9), world, chosen.training.mixup, seed=5, step=3)[rank]
    metrics = learner.update(3, share)
    assert gradients.keys() == dict(learner.model.named_parameters()).keys()
    learner.close()
    found = {"gradients": gradients, "metrics": metrics}
    if out and rank == 0:
        torch.save(found, out)
    return found


def test_micro_batches_and_ranks_do_not_matter(tmp_path: Path) -> None:
    robust = Token2TextTrainingConfig(label_smoothing=0.1, mixup=0.5, adversarial=0.2)
    whole = one_update(0, 1, str(tmp_path / "a"), spec(robust))
    assert max(float(g.abs().max()) for g in whole["gradients"].values()) > 1e-3
    assert_same_update(whole, one_update(0, 1, str(tmp_path / "b"), spec(robust, micro_batch_tokens=25)), rtol=1e-4)
    out = tmp_path / "two"
    run_ranks(one_update, 2, 2, str(tmp_path / "c"), spec(robust, micro_batch_tokens=30), str(out))
    assert_same_update(whole, torch.load(out, weights_only=True), rtol=1e-4)


def test_the_worst_shift_does_not_depend_on_the_neighbours(tmp_path: Path) -> None:
    shifted = Token2TextTrainingConfig(adversarial=0.2)
    whole = one_update(0, 1, str(tmp_path / "a"), spec(shifted))
    assert_same_update(whole, one_update(0, 1, str(tmp_path / "b"), spec(shifted, micro_batch_tokens=1)), rtol=1e-4)


def test_a_partner_without_a_share_has_no_length_either(tmp_path: Path) -> None:
    mixed = Token2TextTrainingConfig(mixup=0.03)
    (share,) = plan_token2text(corpus(9), 1, mixed.mixup, seed=5, step=3)
    assert len({item.share < 1 for item in share.items}) == 2, "Beta draws of 1 occur beside others"
    whole = one_update(0, 1, str(tmp_path / "a"), spec(mixed))
    for tokens in (1, 25):
        assert_same_update(
            whole, one_update(0, 1, str(tmp_path / f"{tokens}"), spec(mixed, micro_batch_tokens=tokens)), rtol=1e-4
        )


def test_impossible_texts_do_not_weaken_the_others(tmp_path: Path) -> None:
    training = Token2TextTrainingConfig(attributes=0.0, label_smoothing=0.1)
    items = corpus(5)
    long = [SpeechText(item.tokens, (1,) * 40, item.attributes) for item in corpus(3, seed=1)]
    found = []
    for i, batch in enumerate((items, [*items, *long], long)):
        learner = Token2TextRank(spec(training), 0, 1, f"file://{tmp_path / f'meet-{i}'}")
        gradients = keep_gradients(learner.model, learner.optimiser)
        metrics = learner.update(1, plan_token2text(batch, 1, 0.0, 0, 1)[0])
        learner.close()
        found.append((gradients, metrics))
    (alone, metrics), (beside, metrics_beside), (nothing, metrics_of_nothing) = found
    for name, gradient in alone.items():
        torch.testing.assert_close(beside[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert max(float(g.abs().max()) for g in alone.values()) > 1e-3
    assert not any(g.any() for g in nothing.values())
    assert metrics_beside["learner/nll"] == pytest.approx(metrics["learner/nll"], rel=1e-5)
    assert "learner/nll" not in metrics_of_nothing
    shares = [m["learner/impossible"] for m in (metrics, metrics_beside, metrics_of_nothing)]
    assert shares == pytest.approx([0, 3 / 8, 1])


@given(st.integers(1, 9), st.sampled_from([0.0, 0.5]), st.integers(1, 3))
def test_plan_counts_the_labels_of_texts_that_fit(count: int, mixup: float, labels_per_token: int) -> None:
    generator = torch.Generator().manual_seed(count)
    texts = [
        tuple(torch.randint(1, 4, (int(torch.randint(1, 30, (), generator=generator)),), generator=generator).tolist())
        for _ in range(count)
    ]
    items = [replace(item, text_ids=text) for item, text in zip(corpus(count), texts, strict=True)]
    (share,) = plan_token2text(items, 1, mixup, 1, 2, labels_per_token=labels_per_token)
    frames = torch.tensor([labels_per_token * mixed.length for mixed in share.items])
    judged = Token2TextOutput(torch.zeros(count, 1, 1), frames, (), torch.zeros(0))
    expected = 0.0
    for side, weights in (("item", [m.share for m in share.items]), ("partner", [1 - m.share for m in share.items])):
        said = [getattr(mixed, side).text_ids for mixed in share.items]
        fits = judged.possible(said).tolist()
        expected += sum(w * len(text) for w, text, fit in zip(weights, said, fits, strict=True) if fit)
    assert share.labels == pytest.approx(expected)


def learn_and_read(
    folder: Path, robust: bool, steps: int, **changes: Any
) -> tuple[dict[str, float], list[SpeechText], dict[int, Prediction], list[Token2TextOutput]]:
    """Train a new model and let it read what it has not seen.

    Returns:
        Metrics of the last step, the items, the rank's predictions by item, and what the saved model says of each,
        alone and on the CPU.
    """
    training = Token2TextTrainingConfig(label_smoothing=0.05, mixup=0.2, adversarial=0.1)
    learner = Token2TextRank(spec(training if robust else None, **changes), 0, 1, f"file://{folder / 'meet'}")
    try:
        for step in range(1, steps + 1):
            (share,) = plan_token2text(corpus(24, seed=step), 1, learner.spec.training.mixup, 0, step)
            metrics = learner.update(step, share)
        learner.save(str(folder / "checkpoint"))
        items = corpus(50, seed=10_000)
        order = plan_predictions(items, 1)[0]
        predictions = dict(zip(order, learner.predict([items[i] for i in order], items[0]), strict=True))
    finally:
        learner.close()
    model = Token2Text.load(folder / "checkpoint" / "hf")
    with torch.no_grad():
        outputs = [model(torch.tensor([item.tokens]), torch.tensor([len(item.tokens)])) for item in items]
    return metrics, items, predictions, outputs


@pytest.mark.parametrize("robust", [False, True])
def test_it_learns_to_read_speech_tokens(robust: bool, tmp_path: Path) -> None:
    metrics, items, predictions, outputs = learn_and_read(tmp_path, robust, steps=90)
    assert metrics["attributes/pitch/correct"] > 0.7 and metrics["learner/nll"] < 1.0
    read = [output.greedy_labels()[0] == item.text_ids for output, item in zip(outputs, items, strict=True)]
    assert sum(read) >= 45
    for i, output in enumerate(outputs):  # one by one as in padded batches
        assert predictions[i].labels == output.greedy_labels()[0]
        assert predictions[i].attributes == (int(output.attributes[0].argmax()),)
        nll = -float(output.text_log_likelihood([items[i].text_ids]))
        assert predictions[i].nll == pytest.approx(nll, rel=1e-4, abs=1e-4)
    pitch = [int(output.attributes[0].argmax()) for output in outputs]
    assert sum(p == item.attributes[0] for p, item in zip(pitch, items, strict=True) if item.attributes[0] >= 0) >= 38
    assert CONFIG.text(outputs[0].greedy_labels()[0]) == CONFIG.text(items[0].text_ids)


def test_resume_continues(tmp_path: Path) -> None:
    def steps(learner: Token2TextRank, numbers: range) -> None:
        for step in numbers:
            learner.update(step, plan_token2text(corpus(8, seed=step), 1, 0.0, 0, step)[0])

    learner = Token2TextRank(spec(), 0, 1, f"file://{tmp_path / 'a'}")
    steps(learner, range(1, 3))
    learner.save(str(tmp_path / "checkpoint"))
    steps(learner, range(3, 5))
    expected = {name: p.full_tensor().clone() for name, p in learner.model.named_parameters()}  # type: ignore[operator]
    learner.close()
    resumed = Token2TextRank(spec(), 0, 1, f"file://{tmp_path / 'b'}")
    resumed.load(str(tmp_path / "checkpoint"))
    steps(resumed, range(3, 5))
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter.full_tensor(), expected[name]), name  # type: ignore[operator]
    resumed.close()


def read_on_ranks(rank: int, world: int, meeting: str, out: str) -> None:
    items = corpus(7)
    learner = Token2TextRank(spec(micro_batch_tokens=12), rank, world, f"file://{meeting}")
    share = [items[i] for i in plan_predictions(items, world)[rank]]
    torch.save(learner.predict(share, items[0]), f"{out}-{rank}")
    learner.close()


def test_ranks_of_unequal_load_read_the_same(tmp_path: Path) -> None:
    read_on_ranks(0, 1, str(tmp_path / "a"), str(tmp_path / "one"))
    run_ranks(read_on_ranks, 3, 3, str(tmp_path / "b"), str(tmp_path / "three"))
    items = corpus(7)
    (whole,) = plan_predictions(items, 1)
    expected = dict(zip(whole, torch.load(tmp_path / "one-0", weights_only=False), strict=True))
    for rank, share in enumerate(plan_predictions(items, 3)):
        for i, reading in zip(share, torch.load(tmp_path / f"three-{rank}", weights_only=False), strict=True):
            assert (reading.labels, reading.attributes) == (expected[i].labels, expected[i].attributes)
            assert reading.nll == pytest.approx(expected[i].nll, rel=1e-4, abs=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(1, 4), st.sampled_from([0.0, 0.5]), st.integers(5, 60))
def test_plan_deals_out_everything_once(count: int, ranks: int, mixup: float, budget: int) -> None:
    items = corpus(count)
    shares = plan_token2text(items, ranks, mixup, 1, 2)
    dealt = [mixed for share in shares for batch in split_items(share.items, budget) for mixed in batch]
    assert sorted(mixed.item.tokens for mixed in dealt) == sorted(item.tokens for item in items)
    assert all(share.samples == count for share in shares)
    assert sum(mixed.labels(1) for mixed in dealt) == pytest.approx(shares[0].labels)
    for share in shares:
        for batch in split_items(share.items, budget):
            assert len(batch) == 1 or len(batch) * max(mixed.length for mixed in batch) <= budget


def test_noise_replaces_about_its_share_of_the_tokens_by_others_of_the_step() -> None:
    items = corpus(40)
    (share,) = plan_token2text(items, 1, 0.0, 1, 2, noise=0.3)
    (again,) = plan_token2text(items, 1, 0.0, 1, 2, noise=0.3)
    (quiet,) = plan_token2text(items, 1, 0.0, 1, 2)
    total = changed = 0
    for mixed, clean in zip(share.items, quiet.items, strict=True):
        original = clean.item
        assert (mixed.item.text_ids, mixed.item.attributes) == (original.text_ids, original.attributes)
        total += len(original.tokens)
        changed += sum(a != b for a, b in zip(mixed.item.tokens, original.tokens, strict=True))
    assert 0.1 < changed / total < 0.4
    assert {token for mixed in share.items for token in mixed.item.tokens} <= {t for item in items for t in item.tokens}
    assert share == again, "drawn from seed and step alone"
