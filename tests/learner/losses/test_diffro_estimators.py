"""What DiffRO's gradient estimates: against the exact policy gradient, which REINFORCE estimates without bias.

A tiny autoregressive policy whose gradient can be had by enumeration, and a smooth reward of token embeddings. The
figures in docs/algorithms.md come from `python -m tests.learner.losses.test_diffro_estimators`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from learner.losses.diffro import speech_embeddings

V, LENGTH, WIDTH = 4, 3, 5


@dataclass(frozen=True)
class Problem:
    """A policy with a free row of logits for each context, and f(embeddings (…, LENGTH, WIDTH)) → (…).

    Attributes:
        logits: (contexts, V); contexts are all prefixes, or just the positions when `memory` is off.
        pairs: strength of the part of the reward that looks at neighbouring tokens together, as text does.
    """

    logits: torch.Tensor
    table: torch.Tensor
    weights: torch.Tensor
    memory: bool
    pairs: float

    @classmethod
    def draw(cls, memory: bool, pairs: float, seed: int = 0) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        contexts = sum(V**t for t in range(LENGTH)) if memory else LENGTH
        shapes = ((contexts, V), (V, WIDTH), (LENGTH, WIDTH))
        logits, table, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        return cls(2 * logits, table, weights, memory, pairs)

    def contexts(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, LENGTH) tokens → index of the context at each position."""
        if not self.memory:
            return torch.arange(LENGTH).expand(tokens.shape)
        found, offset, prefix = [], 0, torch.zeros(len(tokens), dtype=torch.long)
        for t in range(LENGTH):
            found.append(offset + prefix)
            offset += V**t
            prefix = prefix * V + tokens[:, t]
        return torch.stack(found, 1)

    def reward(self, embedded: torch.Tensor) -> torch.Tensor:
        neighbours = (embedded[..., 1:, :] * embedded[..., :-1, :]).sum((-1, -2))
        return (embedded * self.weights).sum((-1, -2)) + self.pairs * neighbours

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        tokens = torch.zeros(count, LENGTH, dtype=torch.long)
        for t in range(LENGTH):
            rows = self.logits[self.contexts(tokens)[:, t]]
            tokens[:, t] = torch.multinomial(rows.softmax(1), 1, replacement=True, generator=generator)[:, 0]
        return tokens

    def exact(self) -> torch.Tensor:
        """∇ E[f] by enumeration of all sequences."""
        logits = self.logits.clone().requires_grad_()
        tokens = torch.tensor(list(itertools.product(range(V), repeat=LENGTH)))
        logprobs = logits.log_softmax(1)[self.contexts(tokens)].gather(2, tokens[:, :, None])[:, :, 0].sum(1)
        expectation = (logprobs.exp() * self.reward(self.table[tokens])).sum()
        return torch.autograd.grad(expectation, logits)[0]

    def reinforce(self, tokens: torch.Tensor) -> torch.Tensor:
        """Its estimate from samples, with their mean reward as baseline."""
        logits = self.logits.clone().requires_grad_()
        logprobs = logits.log_softmax(1)[self.contexts(tokens)].gather(2, tokens[:, :, None])[:, :, 0].sum(1)
        rewards = self.reward(self.table[tokens])
        return torch.autograd.grad((logprobs * (rewards - rewards.mean())).mean(), logits)[0]

    def diffro(self, tokens: torch.Tensor, noise: str, seed: int, temperature: float = 1.0) -> torch.Tensor:
        """DiffRO's estimate from the same samples, by the learner's own function."""
        logits = self.logits.clone().requires_grad_()
        hidden = logits[self.contexts(tokens)].flatten(0, 1)
        keys = torch.randint(-(2**62), 2**62, (len(hidden),), generator=torch.Generator().manual_seed(seed))
        embedded = speech_embeddings(
            hidden,
            torch.eye(V, dtype=torch.float64),
            tokens.flatten(),
            self.table,
            keys,
            sampler_temperature=1.0,
            temperature=temperature,
            noise=noise,
            chunk=10_000_000,
        )
        rewards = self.reward(embedded.unflatten(0, (-1, LENGTH)))
        return torch.autograd.grad(rewards.mean(), logits)[0]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@dataclass(frozen=True)
class Comparison:
    """One estimator on one problem: direction and length of its mean against the exact gradient, and the noise of
    one sample, √(trace of the covariance), in units of the exact gradient's length."""

    direction: float
    length: float
    noise: float


def compare(problem: Problem, count: int, temperature: float = 1.0) -> dict[str, Comparison]:
    exact = problem.exact()
    tokens = problem.sample(count, torch.Generator().manual_seed(7))
    estimators = {
        "reinforce": lambda part, seed: problem.reinforce(part),
        "fresh": lambda part, seed: problem.diffro(part, "fresh", seed, temperature),
        "conditional": lambda part, seed: problem.diffro(part, "conditional", seed, temperature),
    }
    found = {}
    for name, estimate in estimators.items():
        parts = torch.stack([estimate(part, seed) for seed, part in enumerate(tokens.chunk(50))])
        mean = parts.mean(0)
        spread = float((parts.var(0).sum() * (count / 50)).sqrt() / exact.norm())
        found[name] = Comparison(cosine(mean, exact), float(mean.norm() / exact.norm()), spread)
    return found


@pytest.mark.parametrize("memory", [False, True])
def test_reinforce_is_unbiased_and_straight_through_points_the_same_way(memory: bool) -> None:
    found = compare(Problem.draw(memory, pairs=0.3), 40_000)
    assert found["reinforce"].direction > 0.99
    assert found["reinforce"].length == pytest.approx(1.0, abs=0.08)
    for noise in ("fresh", "conditional"):
        assert found[noise].direction > 0.6, noise
        assert found[noise].noise < found["reinforce"].noise, "the reason to differentiate the reward at all"


def test_conditional_noise_is_the_better_one_where_tokens_depend_on_each_other() -> None:
    """Fresh draws do not fit together: each is drawn after the *sampled* tokens, not after the fresh ones."""
    found = [compare(Problem.draw(True, pairs=1.0, seed=seed), 10_000) for seed in range(8)]
    fresh, conditional = (sum(f[noise].direction for f in found) / len(found) for noise in ("fresh", "conditional"))
    assert conditional > fresh + 0.03


def test_without_memory_both_noises_estimate_the_same() -> None:
    """Where no token changes the context of later ones, sampled tokens with conditional noise are fresh draws."""
    problem = Problem.draw(memory=False, pairs=0.5)
    tokens = problem.sample(200_000, torch.Generator().manual_seed(1))
    fresh, conditional = (problem.diffro(tokens, noise, seed=2) for noise in ("fresh", "conditional"))
    torch.testing.assert_close(conditional, fresh, atol=0.02, rtol=0.02)


def test_bias_is_that_of_the_relaxation() -> None:
    """Even for a linear reward the mean is E[∂ soft one-hot] · reward, which is not ∂p · reward."""
    problem = Problem.draw(memory=False, pairs=0.0)
    tokens = problem.sample(100_000, torch.Generator().manual_seed(3))
    mean = problem.diffro(tokens, "conditional", seed=4)
    exact = problem.exact()
    assert cosine(mean, exact) > 0.9
    assert float((mean - exact).norm() / exact.norm()) > 0.05, "unbiased? then docs/algorithms.md must say so"


def table(problems: int = 20, count: int = 20_000) -> str:
    """Markdown: means over random problems."""
    rows = [
        "| contexts | reward | τ | estimator | cosine | length | noise of one sample |",
        "|---|---|--:|---|--:|--:|--:|",
    ]
    for memory, pairs in itertools.product((False, True), (0.0, 1.0)):
        for temperature in (0.5, 1.0, 2.0):
            drawn = [compare(Problem.draw(memory, pairs, seed), count, temperature) for seed in range(problems)]
            for name in drawn[0] if temperature == 0.5 else ("fresh", "conditional"):
                means = [
                    sum(getattr(found[name], field) for found in drawn) / problems
                    for field in ("direction", "length", "noise")
                ]
                context, reward = "all prefixes" if memory else "positions", "pairs" if pairs else "linear"
                tau = "–" if name == "reinforce" else f"{temperature:g}"
                rows.append(
                    f"| {context} | {reward} | {tau} | {name} | {means[0]:.3f} | {means[1]:.2f} | {means[2]:.2f} |"
                )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())  # noqa: T201
