"""Exactly once per epoch, wherever the run was cut."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.data.prompts import PromptSource
from cluster.runs.ledger import Audit, Ledger, LedgerEntry
from speech.errors import UserError
from speech.records import Utterance


def utterances(count: int) -> list[Utterance]:
    return [Utterance(id=f"spk/u{i}", audio=f"/u{i}.wav", text=f"word {i}") for i in range(count)]


SIZES = st.integers(1, 40)
BATCHES = st.integers(1, 17)
SEEDS = st.integers(0, 2**31 - 1)


@given(size=SIZES, batch=BATCHES, seed=SEEDS, shuffle=st.booleans())
def test_every_prompt_is_dealt_exactly_once_per_epoch(size: int, batch: int, seed: int, shuffle: bool) -> None:
    source = PromptSource(utterances(size), seed, shuffle)
    prompts = []
    while source.complete_epochs < 3:
        dealt = source.take(batch)
        assert len(dealt) == batch
        prompts += dealt
    assert len({p.id for p in prompts}) == len(prompts)
    counts = Counter(p.utterance.id for p in prompts if p.epoch < 3)
    assert set(counts.values()) == {3}
    assert len(counts) == size
    assert [(p.epoch, p.position) for p in prompts] == [divmod(i, size) for i in range(len(prompts))]
    assert all(p.id == f"{p.epoch}/{p.utterance.id}" and 0 <= p.seed < 2**31 for p in prompts)


@given(size=SIZES, batch=BATCHES, seed=SEEDS, before=st.integers(0, 12), extra=st.integers(0, 5))
def test_restore_continues_the_same(size: int, batch: int, seed: int, before: int, extra: int) -> None:
    source = PromptSource(utterances(size), seed)
    source.take(before * batch + extra)
    state = json.loads(json.dumps(source.state()))
    again = PromptSource(utterances(size), seed)
    again.restore(state)
    assert again.take(6 * batch) == source.take(6 * batch)


def test_prompts_that_were_dealt_are_found_again_by_their_places() -> None:
    source = PromptSource(utterances(5), 3)
    dealt = source.take(13)
    state = source.state()
    places = [(p.epoch, p.position) for p in dealt]
    assert source.at(places[3:9]) == dealt[3:9]
    assert source.at(reversed(places)) == dealt[::-1]
    assert source.state() == state and source.at([]) == []
    with pytest.raises(IndexError):
        source.at([(0, 5)])


def test_epochs_and_seeds_have_their_own_orders() -> None:
    first = PromptSource(utterances(50), 1)
    other = PromptSource(utterances(50), 2)
    orders = [[p.utterance.id for p in batch] for batch in (first.take(50), first.take(50), other.take(50))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    plain = PromptSource(utterances(5), 1, shuffle=False)
    assert [p.utterance.id for p in plain.take(5)] == [u.id for u in utterances(5)]


def test_prompt_seeds_differ_and_do_not_depend_on_the_batch() -> None:
    small = PromptSource(utterances(30), 3)
    large = PromptSource(utterances(30), 3)
    seeds = {p.id: p.seed for p in large.take(60)}
    assert len(set(seeds.values())) == 60
    assert all(seeds[p.id] == p.seed for p in small.take(60))


def test_order_is_pinned() -> None:
    """A change here makes every checkpoint in the world continue elsewhere."""
    source = PromptSource(utterances(6), 0)
    assert [(p.utterance.id, p.seed) for p in source.take(6)] == PINNED


def framed(*parts: object) -> bytes:
    encoded = [str(part).encode("utf-8") for part in parts]
    return hashlib.blake2b(b"".join(len(e).to_bytes(4, "big") + e for e in encoded), digest_size=8).digest()


@given(ids=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=60, unique=True), seed=SEEDS)
def test_the_order_is_the_sort_by_a_hash(ids: list[str], seed: int) -> None:
    source = PromptSource([Utterance(id=name, audio="", text="x") for name in ids], seed)
    for epoch in range(3):
        expected = sorted(ids, key=lambda name: framed("order", seed, epoch, name))
        assert [prompt.utterance.id for prompt in source.take(len(ids))] == expected


def test_the_next_order_is_found_beside_the_present_one() -> None:
    source = PromptSource(utterances(9), 0)
    threads = []
    order = source._epoch_order
    source._epoch_order = lambda epoch: threads.append(threading.current_thread()) or order(epoch)  # type: ignore
    source.take(40)
    source._sorter.shutdown()  # the last one may still be under way
    assert len(threads) >= 4 and threading.current_thread() not in threads


def test_restore_refuses_other_data() -> None:
    state = PromptSource(utterances(5), 0).state()
    other = [*utterances(4), replace(utterances(5)[4], text="another transcript")]
    for changed in (utterances(6), utterances(5)[::-1], other):
        with pytest.raises(UserError, match="training utterances have changed"):
            PromptSource(changed, 0).restore(state)
    moved = [replace(u, audio=f"/moved{u.audio}") for u in utterances(5)]
    PromptSource(moved, 0).restore(state)
    with pytest.raises(UserError, match="made with seed 0"):
        PromptSource(utterances(5), 1).restore(state)


def test_checkpoints_of_earlier_releases_know_the_ids() -> None:
    state = {"epoch": 1, "position": 2, "seed": 0, "data": framed(*(u.id for u in utterances(5))).hex()}
    source, expected = PromptSource(utterances(5), 0), PromptSource(utterances(5), 0)
    source.restore(state)
    expected.take(7)
    assert source.take(9) == expected.take(9)
    with pytest.raises(UserError, match="training utterances have changed"):
        PromptSource(utterances(6), 0).restore(state)


def test_refuses_what_cannot_be_dealt() -> None:
    with pytest.raises(ValueError, match="at least one utterance"):
        PromptSource([], 0)
    with pytest.raises(ValueError, match="not unique"):
        PromptSource(utterances(2) * 2, 0)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(size=st.integers(1, 12), batch=BATCHES, every=st.integers(1, 4), kills=st.lists(st.integers(1, 6), max_size=4))
def test_killed_runs_account_for_every_prompt(
    tmp_path_factory: pytest.TempPathFactory, size: int, batch: int, every: int, kills: list[int]
) -> None:
    """Train in steps, checkpoint every few, die at arbitrary steps, resume: the ledger comes out exact."""
    path = tmp_path_factory.mktemp("run") / "ledger.jsonl"
    ledger, last = Ledger(path), 0
    saved: tuple[int, dict[str, Any] | None] = (0, None)
    for steps in [*kills, 10]:
        source = PromptSource(utterances(size), 0)
        step, state = saved
        if state is not None:
            source.restore(state)
        ledger.rewind(step)
        for _ in range(steps):
            step += 1
            prompts = source.take(batch)
            ledger.append(
                step,
                [
                    LedgerEntry(p.id, "rejected", "no valid sample")
                    if p.seed % 5 == 0
                    else LedgerEntry(p.id, "trained")
                    for p in prompts
                ],
            )
            if step % every == 0:
                saved = (step, source.state())
        last = step
        with path.open("a", encoding="utf-8") as file:
            file.write('{"step": 99, "pro')  # killed in the middle of a line
    audit = ledger.audit([u.id for u in utterances(size)], source.complete_epochs)
    assert audit.exact
    assert audit.trained + audit.rejected == last * batch
    assert sum(audit.reasons.values()) == audit.rejected


def test_audit_finds_what_is_wrong(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(1, [LedgerEntry("0/a", "trained"), LedgerEntry("0/b/c", "trained")])
    ledger.append(2, [LedgerEntry("0/a", "trained"), LedgerEntry("1/x", "rejected", "audio is corrupt")])
    audit = ledger.audit(["a", "b/c", "d"])
    assert audit == Audit(
        trained=3,
        rejected=1,
        reasons={"audio is corrupt": 1},
        complete_epochs=1,
        duplicates=("0/a",),
        missing=("0/d",),
        unknown=("1/x",),
    )
    assert not audit.exact
    assert ledger.audit(["a", "b/c", "d"], in_flight=["0/d"]).missing == ()
    ledger.rewind(1)
    assert ledger.audit(["a", "b/c"], 1).exact


def test_ledger_needs_reasons() -> None:
    with pytest.raises(ValueError, match="reason"):
        LedgerEntry("0/a", "rejected")
    with pytest.raises(ValueError, match="reason"):
        LedgerEntry("0/a", "trained", "because")


PINNED = [
    ("spk/u0", 2068729847),
    ("spk/u1", 396864438),
    ("spk/u4", 671798742),
    ("spk/u3", 1604705386),
    ("spk/u2", 1483497436),
    ("spk/u5", 1438587203),
]
