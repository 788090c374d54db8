"""The mechanism of all pools, against real Ray actors that stand in for those that compute."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from cluster.actors import pool as pools
from cluster.actors.calls import Request
from cluster.actors.pool import ActorPool
from cluster.actors.roster import ATTEMPTS, StartError
from speech.errors import UserError
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=0)
class StandIn:
    """Says words, each with its place and what it was taught last.

    A word is also a command: `die` and `hang` are obeyed by the first actor that hears them, `kill` by every one;
    `raise` and `refuse` raise an error; `wait` goes on once there is a file `go`. Each word said is noted in `notes`.
    """

    def __init__(self, folder: Path, place: int) -> None:
        if (folder / "broken").exists():
            raise RuntimeError("no model")
        self.folder, self.place, self.taught = folder, place, "nothing"

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def say(self, words: Sequence[str]) -> list[str]:
        return [self._say(word) for word in words]

    def teach(self, what: str) -> None:
        if what == "death" and self._first("taught"):
            os._exit(1)
        if what == "nonsense":
            raise UserError("that is nonsense")
        self.taught = what

    def _say(self, word: str) -> str:
        (self.folder / f"began-{word}").touch()
        if word == "kill" or (word == "die" and self._first(word)):
            os._exit(1)
        if word == "hang" and self._first(word):
            time.sleep(600)
        if word == "raise":
            raise ValueError("not a word")
        if word == "refuse":
            raise UserError("not a word that I say")
        while word == "wait" and not (self.folder / "go").exists():
            time.sleep(0.02)
        with (self.folder / "notes").open("a") as notes:
            notes.write(word + "\n")
        return f"{word} {self.place} {self.taught}"

    def _first(self, word: str) -> bool:
        try:
            (self.folder / word).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class StrictPool(ActorPool[str, str]):
    """Contiguous shares, tried again as they are; what nobody can do is an error: as encoders and codecs do."""

    what, component, work = "talk", "speaker", "say"

    def __init__(self, folder: Path, count: int, attempts: int = ATTEMPTS) -> None:
        self.folder, self.cpus = folder, 0
        super().__init__(count, attempts)

    def say(self, words: Sequence[str], timeout: float | None = 120.0) -> list[str]:
        return self._run(words, lambda actor, items: Request(actor.say.remote(items), lambda said: said), timeout)

    def teach(self, what: str, timeout: float = 120.0) -> None:
        self._prepare(lambda actor: actor.teach.remote(what), timeout)

    def _spawn(self, place: int) -> Any:
        return StandIn.options(num_cpus=self.cpus).remote(self.folder, place)  # type: ignore[attr-defined]

    def _exhausted(self, items: list[str], reason: str, error: Exception) -> Sequence[str]:
        raise RuntimeError(f"{self.what}: {self.attempts} actors failed on {items[0]!r}: {reason}")


class LenientPool(StrictPool):
    """Calls of two words, tried again one by one whatever happened; what nobody can do is marked: as rewards do."""

    alone_after = 1
    failures = (RayError, UserError)

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(folder, count, attempts=2)

    def _split(self, count: int, actors: int) -> list[Sequence[int]]:
        return [range(count)[start : start + 2] for start in range(0, count, 2)]

    def _exhausted(self, items: list[str], reason: str, error: Exception) -> Sequence[str]:
        return [f"{item} failed: {reason}" for item in items]


Make = Callable[..., StrictPool]
both = pytest.mark.parametrize("kind", [StrictPool, LenientPool])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[StrictPool] = []

    def build(kind: type[StrictPool] = StrictPool, count: int = 2) -> StrictPool:
        made.append(kind(tmp_path, count))
        ray.get(made[-1].start())
        return made[-1]

    yield build
    for pool in made:
        pool.close()


def words(said: Sequence[str]) -> list[str]:
    return [line.split()[0] for line in said]


def places(said: Sequence[str]) -> list[int]:
    return [int(line.split()[1]) for line in said]


def in_thread(call: Callable[[], list[str]]) -> tuple[threading.Thread, list[str]]:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(call()), daemon=True)
    thread.start()
    return thread, found


def is_dead(actor: Any) -> bool:
    try:
        ray.get(actor.__ray_ready__.remote())
    except ray.exceptions.RayActorError:
        return True
    return False


def test_shares_are_contiguous_and_go_to_the_actors_in_order(make: Make) -> None:
    pool = make()
    said = pool.say(list("abcde"))
    assert words(said) == list("abcde") and places(said) == [0, 0, 1, 1, 1]
    assert places(pool.say(["a"])) == [1] and pool.say([]) == []
    assert (pool.replaced, pool.retried, pool.wanted, pool.serving()) == (0, 0, 2, 2)


def test_an_actor_that_is_done_gets_the_next_call(make: Make, tmp_path: Path) -> None:
    pool = make(LenientPool)
    thread, found = in_thread(lambda: pool.say(["wait", *"abcdefg"]))
    until(lambda: (tmp_path / "began-g").exists())
    (tmp_path / "go").touch()
    thread.join()
    assert words(found) == ["wait", *"abcdefg"] and places(found) == [0, 0, *[1] * 6]


@both
def test_a_lost_actor_is_replaced_and_its_work_is_done_again(make: Make, kind: type[StrictPool]) -> None:
    pool = make(kind)
    given = ["a", "b", "c", "die"]
    assert words(pool.say(given)) == given
    assert (pool.replaced, pool.retried) == (1, 2)
    until(lambda: pool.serving() == 2)
    for actor in pool.actors:
        ray.kill(actor)
        until(partial(is_dead, actor))  # a kill takes effect later, and this little work is soon done
    assert words(pool.say(given)) == given and pool.replaced == 3
    assert pool.wanted == 2


@both
def test_a_hung_actor_is_killed_after_the_time_out(make: Make, kind: type[StrictPool]) -> None:
    pool = make(kind)
    hung = pool.actors
    assert words(pool.say(["hang", "b", "c"], 5.0)) == ["hang", "b", "c"]
    assert (pool.replaced, pool.retried) == (1, 2)
    assert sum(actor not in pool.actors for actor in hung) == 1


def test_work_that_nobody_can_do_is_an_error(make: Make) -> None:
    pool = make()
    with pytest.raises(RuntimeError, match=r"talk: 3 actors failed on 'b': .*died"):
        pool.say(["b", "kill", "c"])
    assert (pool.replaced, pool.retried) == (3, 4)
    assert words(pool.say(["a", "b"])) == ["a", "b"], "it serves again"


def test_work_that_nobody_can_do_is_marked_and_spoils_no_other(make: Make) -> None:
    pool = make(LenientPool)
    said = pool.say(["a", "kill", "b", "c"])
    assert [words(said)[i] for i in (0, 2, 3)] == ["a", "b", "c"] and "failed" not in said[0] + said[2] + said[3]
    assert said[1].startswith("kill failed: ") and "died" in said[1]
    assert (pool.replaced, pool.retried) == (2, 2)


def test_an_error_is_raised_or_costs_the_actor(make: Make) -> None:
    strict = make()
    with pytest.raises(ValueError, match="not a word"):
        strict.say(["a", "raise"])
    with pytest.raises(UserError, match=r"^not a word that I say$"):
        strict.say(["a", "refuse"])
    assert (strict.replaced, words(strict.say(["a", "b"]))) == (0, ["a", "b"])
    lenient = make(LenientPool)
    said = lenient.say(["a", "raise", "refuse"])
    assert words(said) == ["a", "raise", "refuse"] and "not a word" in said[1] and "failed" not in said[0]
    assert said[2] == "refuse failed: not a word that I say" and lenient.replaced == 4


def test_calls_of_a_run_that_has_failed_are_waited_for_by_the_next(make: Make, tmp_path: Path) -> None:
    pool = make()
    with pytest.raises(ValueError, match="not a word"):
        pool.say(["wait", "raise"])
    until(lambda: (tmp_path / "began-wait").exists())
    assert places(pool.say(["a", "b"])) == [1, 1], "the other still waits"
    (tmp_path / "go").touch()
    until(lambda: places(pool.say(["a", "b"])) == [0, 1])
    with pytest.raises(ValueError, match="not a word"):
        pool.say(["hang", "raise"], 3.0)
    until(lambda: words(pool.say(["a"])) == ["a"] and pool.replaced == 1)


def test_starts_that_fail_are_an_error_where_nobody_serves(make: Make, tmp_path: Path) -> None:
    pool = make(count=1)
    (tmp_path / "broken").touch()
    with pytest.raises(StartError, match="talk: no actor starts, 3 attempts failed"):
        pool.say(["kill"])
    assert pool.replaced == 4
    (tmp_path / "broken").unlink()
    assert words(pool.say(["a"])) == ["a"]


def test_an_actor_that_does_not_start_is_done_without(make: Make, tmp_path: Path) -> None:
    pool = make()
    (tmp_path / "broken").touch()
    assert words(pool.say(["a", "b", "die", "c"])) == ["a", "b", "die", "c"], "the other takes its share"
    until(lambda: pool.serving() == pool.wanted == len(pool.actors) == 1)
    (tmp_path / "broken").unlink()
    pool.resize(2)
    until(lambda: pool.serving() == 2)


def test_an_actor_without_a_place_in_the_cluster_is_done_without(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make()
    pool.cpus = 1000
    monkeypatch.setattr(pools, "START_S", 0.2)
    pool.resize(3)
    assert len(pool.say(["a", "b", "c"])) == 3
    time.sleep(0.3)
    assert (pool.serving(), pool.wanted, len(pool.actors)) == (2, 2, 2)
    pool.resize(3)
    pool.teach("more")
    time.sleep(0.3)
    said = pool.say(["a", "b", "c"])
    assert places(said) == [0, 0, 1] and (pool.wanted, len(pool.actors)) == (2, 2)


@both
def test_it_is_resized_while_it_works_and_everything_is_done_once(
    make: Make, kind: type[StrictPool], tmp_path: Path
) -> None:
    pool = make(kind, count=1)
    pool.resize(3)
    assert words(pool.say(["a", "b", "c"])) == ["a", "b", "c"], "by whoever is there"
    until(lambda: pool.serving() == 3)
    (tmp_path / "notes").unlink()
    given = ["wait"] * 6
    thread, found = in_thread(lambda: pool.say(given))
    until(lambda: sum(bool(actor.calls) for actor in pool._roster) == 3)
    pool.resize(1)
    assert (pool.serving(), pool.wanted, len(pool.actors)) == (1, 1, 3), "they finish what they have"
    (tmp_path / "go").touch()
    thread.join()
    assert words(found) == given and set(places(found)) == {0, 1, 2}
    assert (tmp_path / "notes").read_text().split() == given
    assert pool.serving() == len(pool.actors) == 1 and pool.replaced == pool.retried == 0
    assert len(pool.say(["a", "b"])) == 2


def test_one_that_joins_takes_work_of_a_run_that_has_begun(make: Make, tmp_path: Path) -> None:
    pool = make(LenientPool, count=1)
    thread, found = in_thread(lambda: pool.say(["wait", "a", "b", "c"]))
    until(lambda: (tmp_path / "began-wait").exists())
    pool.resize(2)
    until(lambda: (tmp_path / "began-c").exists())
    (tmp_path / "go").touch()
    thread.join()
    assert places(found) == [0, 0, 1, 1]


@both
def test_actors_leave_a_node_that_is_about_to_go(
    make: Make, kind: type[StrictPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(kind)
    before = pool.actors
    announced = [{ray.get_runtime_context().get_node_id()}]
    monkeypatch.setattr(pools, "draining_nodes", lambda: announced.pop() if announced else set())
    assert words(pool.say(list("abcd"))) == list("abcd")
    assert (pool.replaced, pool.retried) == (2, 0)
    assert not {actor._actor_id for actor in before} & {actor._actor_id for actor in pool.actors}


def test_a_node_that_goes_during_work_gets_no_more(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "NODES_S", 0.0)
    pool = make(LenientPool, count=1)
    (before,) = pool.actors
    announced: list[set[str]] = []
    monkeypatch.setattr(pools, "draining_nodes", lambda: announced.pop() if announced else set())
    thread, found = in_thread(lambda: pool.say(["wait", "a", "b", "c"]))
    until(lambda: (tmp_path / "began-wait").exists())
    announced.append({ray.get_runtime_context().get_node_id()})
    until(lambda: pool.replaced == 1)
    (tmp_path / "go").touch()
    thread.join()
    assert words(found) == ["wait", "a", "b", "c"] and places(found) == [0, 0, 1, 1]
    assert pool.serving() == 1 and pool.retried == 0 and before not in pool.actors


def test_every_actor_is_brought_up_to_date_before_its_next_work(make: Make) -> None:
    pool = make()

    def taught() -> set[str]:
        return {line.split()[2] for line in pool.say(list("abc"))}

    pool.teach("french")
    assert [line.split()[2] for line in pool.say(["a", "die"])] == ["french", "french"]
    until(lambda: pool.serving() == 2)
    assert taught() == {"french"}, "the successor too"
    pool.resize(3)
    pool.teach("german")
    until(lambda: pool.serving() == 3)
    assert taught() == {"german"}, "one that joins too"


def test_one_that_is_lost_while_it_is_brought_up_to_date_is_replaced(make: Make) -> None:
    pool = make()
    pool.teach("death")
    assert pool.replaced == 1
    assert [line.split()[2] for line in pool.say(["a", "b"])] == ["death", "death"]
    with pytest.raises(UserError, match="that is nonsense"):
        pool.teach("nonsense")
    with pytest.raises(UserError, match="that is nonsense"):
        pool.say(["a", "b"])
    pool.teach("sense")
    assert {line.split()[2] for line in pool.say(["a", "b"])} == {"sense"}


def test_two_threads_use_it_at_the_same_time(make: Make, tmp_path: Path) -> None:
    pool = make()
    first, found = in_thread(lambda: pool.say(["wait", "wait"]))
    until(lambda: sum(bool(actor.calls) for actor in pool._roster) == 2)
    second, also = in_thread(lambda: pool.say(["a", "b"]))
    until(lambda: sum(len(actor.calls) for actor in pool._roster) == 4)
    assert pool.serving() == 2 and not found and not also
    (tmp_path / "go").touch()
    first.join()
    second.join()
    assert (words(found), words(also)) == (["wait", "wait"], ["a", "b"])
    assert places(found) == places(also) == [0, 1]


def test_spans_tell_what_each_actor_did_and_are_cut_where_they_are_asked_for(make: Make, tmp_path: Path) -> None:
    pool = make()
    assert pool.serving() == 2 and pool.spans() == {"speaker 0": [], "speaker 1": []}
    start = time.time()
    thread, _ = in_thread(lambda: pool.say(["wait", "a"]))
    until(lambda: [len(actor.calls) for actor in pool._roster] == [1, 0])
    asked, first = time.time(), pool.spans()
    assert {name: [span.name for span in spans] for name, spans in first.items()} == {
        "speaker 0": ["say"],
        "speaker 1": ["say"],
    }
    (tmp_path / "go").touch()
    thread.join()
    second = pool.spans()
    assert second.keys() == first.keys() and not second["speaker 1"]
    (begun,), (ended,) = first["speaker 0"], second["speaker 0"]
    assert start <= begun.start <= asked <= begun.end == ended.start <= ended.end
    pool.say(["b", "die"])
    died = pool.spans()
    assert [span.name for span in died["speaker 1"]][:1] == ["failed"]
    assert sum(span.name == "say" for spans in died.values() for span in spans) == 2
