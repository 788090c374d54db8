"""A pool of actors that share work, seen from the controller: the one mechanism behind encoders, codecs, reward actors
and the listener."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError

from cluster.actors.calls import Ask, Call, Item, Job, Result, Run
from cluster.actors.remote import contiguous, draining_nodes, get
from cluster.actors.roster import ATTEMPTS, PoolActor, Roster
from speech.errors import last_line
from speech.runtime.spans import KEPT, Span

START_S = 600.0
"""Time-out of a start. An actor imports torch and may read a model from a slow disk; time-outs of work begin after
that."""
NODES_S = 10.0
"""Between two questions, while work goes on, which nodes will go: each one is a call of Ray's control service."""
BUSY_S = 0.05
"""Between two looks for an actor without work."""
LOOK_S = 1.0
"""Longest wait for answers before a look at what other threads have changed, such as the number of actors."""


class ActorPool(ABC, Generic[Item, Result]):
    """Shares items among actors, and returns results in order, whatever happens to the actors.

    An actor that dies, or whose call takes longer than its time-out, is killed and replaced, and its items are tried
    again on whichever actor is free first. After `attempts` such failures `_exhausted` says what becomes of them.

    There are `count` actors until `resize` says otherwise. A new one gets work once it has loaded its models; until
    then the others do it all, and one that does not start is done without. One that must go, or whose node is announced
    to go, finishes its calls and gets no more.

    Safe for threads: several may have work done at the same time, each with at most one call at each actor. Needs an
    initialised Ray. Actors have a method `ready`, which returns the hex id of their node once their models are loaded.

    Attributes:
        what: the actors do, for messages.
        component: what they are called in spans, before their place.
        work: name of a call's span.
        attempts: at each item.
        queues: an actor may have a call of each thread. Otherwise it has one, and time-outs are of that alone.
        alone_after: after so many failures each item of a failed call is tried by itself, so that a bad one spoils no
            other; None never does.
        failures: errors that cost an actor and are worth another attempt; any other is raised.
        retried: items that were tried again, each time counted.
    """

    what: ClassVar[str]
    component: ClassVar[str]
    work: ClassVar[str]
    queues: ClassVar[bool] = True
    alone_after: ClassVar[int | None] = None
    failures: ClassVar[tuple[type[Exception], ...]] = (RayActorError,)

    def __init__(self, count: int, attempts: int = ATTEMPTS) -> None:
        self.attempts = attempts
        self.retried = 0
        self._setup: Callable[[Any], ObjectRef] | None = None
        self._spans: deque[tuple[int, Span]] = deque(maxlen=KEPT)
        self._lock = threading.RLock()  # guards all but runs; nobody waits inside for an actor
        self._roster = Roster(self.what, count, self._start, lambda actor: ray.kill(actor.actor))
        self._roster.adjust()

    @abstractmethod
    def _spawn(self, place: int) -> Any:
        """The handle of a new actor."""

    @abstractmethod
    def _exhausted(self, items: list[Item], reason: str, error: Exception) -> Sequence[Result]:
        """Results of items at which all attempts have failed, or an error."""

    def _split(self, count: int, actors: int) -> list[Sequence[int]]:
        """How `count` items become calls. By default one contiguous share per actor; an actor may have an empty one."""
        return contiguous(range(count), actors)

    def _reason(self, error: Exception) -> str:
        """Why a call has failed, in a line."""
        return last_line(error)

    def start(self) -> list[ObjectRef]:
        """What to wait for until the models are loaded."""
        with self._lock:
            return [actor.ready for actor in self._roster]

    @property
    def wanted(self) -> int:
        """How many actors there should be."""
        return self._roster.wanted

    @property
    def replaced(self) -> int:
        """Actors that were replaced so far, those included that left a node before it went."""
        return self._roster.replaced

    @property
    def actors(self) -> list[Any]:
        """Handles of the actors, of those included that still load or leave."""
        return [actor.actor for actor in self._roster]

    def nodes(self) -> set[str]:
        """Hex ids of the nodes on which actors have started."""
        with self._lock:
            return {actor.node for actor in self._roster if actor.node is not None}

    def serving(self) -> int:
        """How many actors have loaded their models and stay.

        Raises:
            StartError: no actor can be started.
        """
        with self._lock:
            self._look()
            return len(self._roster.serving())

    def resize(self, wanted: int) -> None:
        """Let actors start, or go once they have finished their calls. Waits for neither.

        Raises:
            StartError: no actor can be started.
        """
        with self._lock:
            self._roster.wanted = wanted
            self._look()

    def spans(self) -> dict[str, list[Span]]:
        """What each actor did since the last call, from a call's dispatch to its answer, by `<component> <place>`. A
        call under way is cut here: what follows belongs to the next time."""
        with self._lock:
            now = time.time()
            for actor in self._roster:
                for call in actor.calls:
                    self._note(call, self.work, now)
            taken: dict[str, list[Span]] = {f"{self.component} {a.place}": [] for a in self._roster.serving()}
            for place, span in self._spans:
                taken.setdefault(f"{self.component} {place}", []).append(span)
            self._spans.clear()
            return taken

    def close(self) -> None:
        """End the actors. The pool cannot be used afterwards."""
        with self._lock:
            for actor in self._roster:
                self._roster.end(actor)

    def _run(
        self, items: Sequence[Item], ask: Ask[Item, Result], timeout: float | None, together: bool = False
    ) -> list[Result]:
        """The results, in order.

        Args:
            timeout: of one call, in seconds.
            together: all in one call.

        Raises:
            StartError: no actor can be started.
            Exception: from `_exhausted`, or from an actor where it is none of `failures`.
        """
        run = Run(items, ask, math.inf if timeout is None else timeout)
        nodes_asked = -math.inf
        try:
            while len(run.results) < len(items):
                going: set[str] = set()
                if time.monotonic() - nodes_asked >= NODES_S:
                    going, nodes_asked = draining_nodes(), time.monotonic()
                with self._lock:
                    self._look()
                    self._roster.leave_nodes(going)
                    self._roster.adjust()
                    if not (run.jobs or run.calls or run.results):
                        actors = self._roster.serving() or self._roster.staying()
                        places = range(len(items))
                        run.jobs.extend(map(Job, [places] if together else self._split(len(items), len(actors))))
                    self._dispatch(run)
                    abandoned = [call for actor in self._roster for call in actor.calls if call.run is None]
                    starts = [actor.ready for actor in self._roster if actor.node is None]
                self._collect([*run.calls, *abandoned], starts)
        finally:
            with self._lock:
                for call in run.calls:
                    call.run = None
        return [run.results[place] for place in range(len(items))]

    def _prepare(self, setup: Callable[[Any], ObjectRef], timeout: float | None) -> None:
        """Have every actor do something before its next work: those that serve now, others when they first get work.

        Args:
            setup: asks an actor for it.
            timeout: of waiting for those that serve, in seconds.
        """
        with self._lock:
            self._setup = setup
            self._look()
            asked = [(actor, self._prepared(actor)) for actor in self._roster.serving()]
        for actor, answer in asked:
            try:
                get([answer], f"{self.what}: update", timeout)
            except (RayActorError, TimeoutError) as error:
                self._lose(actor, last_line(error))

    def _start(self, place: int) -> PoolActor:
        actor = self._spawn(place)
        return PoolActor(place=place, actor=actor, ready=actor.ready.remote(), deadline=time.monotonic() + START_S)

    def _look(self) -> None:
        """Note which actors have started, and bring them to the number that is wanted."""
        for actor in self._roster:
            if actor.node is None:
                try:
                    if ray.wait([actor.ready], timeout=0)[0]:
                        self._roster.started(actor, ray.get(actor.ready))
                    elif time.monotonic() >= actor.deadline:
                        self._roster.not_started(actor, f"no sign of life in {START_S:g} s")
                except RayError as error:
                    self._roster.not_started(actor, last_line(error))
        self._roster.adjust()

    def _dispatch(self, run: Run[Item, Result]) -> None:
        # Those with least to do first: another thread's work may be under way.
        for actor in sorted(self._roster.serving(), key=lambda actor: len(actor.calls)):
            if run.jobs and not any(not self.queues or call.run in (run, None) for call in actor.calls):
                job = run.jobs.popleft()
                if not job.places:
                    continue
                prepared = self._prepared(actor)  # an actor does one thing after another
                request = run.ask(actor.actor, [run.items[place] for place in job.places])
                deadline = time.monotonic() + run.timeout
                call = Call(run, actor, job, request, prepared, run.timeout, deadline, time.time())
                actor.calls.append(call)
                run.calls.append(call)

    def _prepared(self, actor: PoolActor) -> ObjectRef | None:
        if self._setup is not None and actor.setup is not self._setup:
            actor.setup, actor.prepared = self._setup, self._setup(actor.actor)
        return actor.prepared

    def _collect(self, calls: list[Call], starts: list[ObjectRef]) -> None:
        """Wait for an answer or a start, at most until the first deadline; take the answers, and what is overdue."""
        refs = [call.request.answer for call in calls] + starts
        soonest = min((call.deadline for call in calls), default=math.inf)
        answered: set[ObjectRef] = set()
        limit = LOOK_S if calls else BUSY_S  # without calls all actors work for other threads, or start
        if not refs:
            time.sleep(limit)
        elif ray.wait(refs, timeout=min(limit, max(0.0, soonest - time.monotonic())))[0]:
            answered.update(ray.wait(refs, num_returns=len(refs), timeout=0)[0])  # the first wait names one of several
        for call in calls:
            if call.request.answer in answered:
                self._take(call)
        for call in calls:
            if call.request.answer not in answered and time.monotonic() >= call.deadline:
                self._end(call, "failed")
                self._failed(call, TimeoutError(f"no answer in {call.timeout:g} s"))

    def _take(self, call: Call) -> None:
        run, name, failure = call.run, self.work, None
        try:
            if run is not None:
                before = [] if call.prepared is None else [call.prepared]
                answer = get([*before, call.request.answer], self.what, None)[-1]
        except self.failures as error:
            name, failure = "failed", error
        finally:
            self._end(call, name)
        if failure is not None:
            self._failed(call, failure)
        elif run is not None:
            with self._lock:
                run.results.update(zip(call.job.places, call.request.results(answer), strict=True))

    def _failed(self, call: Call, error: Exception) -> None:
        """Replace the actor, and try the items again or give them up."""
        reason = self._reason(error)
        self._lose(call.actor, reason)
        run, places, failed = call.run, call.job.places, call.job.failed + 1
        if run is None:
            return
        if failed < self.attempts:
            alone = self.alone_after is not None and failed >= self.alone_after
            parts = [[place] for place in places] if alone else [places]
            run.jobs.extend(Job(part, failed) for part in parts)
            with self._lock:
                self.retried += len(places)
            return
        results = self._exhausted([run.items[place] for place in places], reason, error)
        run.results.update(zip(places, results, strict=True))

    def _lose(self, actor: PoolActor, reason: str) -> None:
        with self._lock:
            self._roster.lost(actor, reason)
            self._roster.adjust()

    def _end(self, call: Call, name: str) -> None:
        with self._lock:
            if call in call.actor.calls:  # another thread sees the end of a call that is for nobody too
                call.actor.calls.remove(call)
                self._note(call, name, time.time())
            if call.run is not None:
                call.run.calls.remove(call)

    def _note(self, call: Call, name: str, now: float) -> None:
        self._spans.append((call.actor.place, Span(name, call.since, now)))
        call.since = now
