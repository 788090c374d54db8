"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.components.schedule import learning_rate


@given(
    st.integers(1, 200),
    st.integers(0, 50),
    st.integers(1, 200),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1),
)
def test_bounds_warm_up_and_monotone_decay(step: int, warmup: int, total: int, decay: str, floor: float) -> None:
    def rate(at: int) -> float:
        return learning_rate(at, peak=2.0, warmup_steps=warmup, total_steps=total, decay=decay, floor=floor)

    assert 0 <= rate(step) <= 2.0
    assert rate(warmup + 1) == 2.0
    if step <= warmup:
        assert 0 < rate(step) < rate(step + 1)
    else:
        assert rate(step) >= rate(step + 1) >= 2.0 * floor - 1e-12


def test_values_by_hand() -> None:
    def rates(decay: str, floor: float = 0.0) -> list[float]:
        return [
            learning_rate(s, peak=1.0, warmup_steps=1, total_steps=5, decay=decay, floor=floor) for s in range(1, 8)
        ]

    assert rates("constant") == [0.5, 1, 1, 1, 1, 1, 1]
    assert rates("linear") == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0, 0])
    assert rates("linear", floor=0.2) == pytest.approx([0.5, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    tail = [
        learning_rate(s, peak=1.0, warmup_steps=1, total_steps=6, decay="linear", decay_steps=2) for s in range(1, 8)
    ]
    assert tail == pytest.approx([0.5, 1, 1, 1, 1, 0.5, 0])
    assert rates("cosine") == pytest.approx([0.5, 1, 0.853553, 0.5, 0.146447, 0, 0], abs=1e-6)


def test_a_run_that_is_all_warm_up_never_divides_by_zero() -> None:
    assert learning_rate(4, peak=1.0, warmup_steps=3, total_steps=3, decay="linear") == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 0}, "step counts from 1"),
        ({"warmup_steps": -1}, "warmup_steps from 0"),
        ({"floor": 1.5}, "fraction"),
        ({"decay": "step"}, "unknown decay"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, object], message: str) -> None:
    given_arguments: dict[str, object] = {"step": 1, "peak": 1.0, "warmup_steps": 0, "total_steps": 5, **arguments}
    with pytest.raises(ValueError, match=message):
        learning_rate(**given_arguments)  # type: ignore[arg-type]
