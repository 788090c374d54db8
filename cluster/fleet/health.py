"""What the controller believes of one engine, and of Ray. Pure: the clock comes in with every call, nothing is sent or
killed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Of an engine, as the controller sees it."""

    RESTARTING = "restarting"  # its actor is being started, for the first time or again
    STALE = "stale"  # alive, but its weights are not those of a verified publication of the current version
    HEALTHY = "healthy"  # serves
    SUSPECT = "suspect"  # did not answer a heartbeat for a while: gets no new work
    DRAINING = "draining"  # leaves: finishes what it has and gets nothing new
    DEAD = "dead"  # gone, or no longer worth waiting for; its actor is to be killed and replaced
    RETIRED = "retired"  # left for good


LIVING = frozenset({State.STALE, State.HEALTHY, State.SUSPECT, State.DRAINING})
"""States of an engine that ought to answer."""

BACKOFF_S = 30.0
"""Between the second failure in a row and the next start. So long vLLM's processes may outlive their actor
(`rollout.orphans`), and hold its GPU."""
BACKOFF_CAP_S = 300.0
OUTAGE_S = 120.0
"""So long Ray's own errors are borne. After half of it Ray itself ends a process whose head does not come back
(`RAY_gcs_rpc_server_reconnect_timeout_s`), so that what lasts longer is no head that is being restarted."""


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """Seconds without an answer to a heartbeat, and failures in a row.

    Attributes:
        suspect_s: after so many an engine is SUSPECT.
        dead_s: after so many it is DEAD.
        failures: so many without finished work in between, and the engine is given up.
        backoff_s: between the second failure in a row and the next start, in seconds; doubled by each one after it.
        backoff_cap_s: longest time between a failure and the next start.
    """

    suspect_s: float
    dead_s: float
    failures: int
    backoff_s: float = BACKOFF_S
    backoff_cap_s: float = BACKOFF_CAP_S

    def __post_init__(self) -> None:
        if not 0 < self.suspect_s < self.dead_s or self.failures < 1:
            raise ValueError("need 0 < suspect_s < dead_s and at least one failure")
        if not 0 <= self.backoff_s <= self.backoff_cap_s:
            raise ValueError("need 0 <= backoff_s <= backoff_cap_s")

    def backoff(self, failures: int) -> float:
        """Seconds between the last of so many failures in a row and the next start. None after the first one: most
        engines that are lost come back at once."""
        if failures <= 1:
            return 0.0
        return min(self.backoff_cap_s, self.backoff_s * 2.0 ** min(failures - 2, 100))


class Health:
    """The state machine of one engine.

    ```
    RESTARTING ─started─► STALE ─verified(current)─► HEALTHY ◄─answered─► SUSPECT
        ▲                   ▲                          │ │                   │
        │                   └──────────expect──────────┘ │                   │
        └─restart─ DEAD ◄──────failed, or silence────────┴───────────────────┘
    any but DEAD, RETIRED ─drain─► DRAINING ─► RETIRED
    ```

    An engine serves only while it is HEALTHY, and the only way to HEALTHY is the verified publication that the fleet
    holds for current.
    """

    def __init__(self, limits: HealthLimits) -> None:
        self._limits = limits
        self._expected: int | None = None
        self._verified: int | None = None
        self._asked: float | None = None
        self.state = State.RESTARTING
        self.failures = 0
        self.reason: str | None = None
        self.restart_at = 0.0
        """On the clock: not before then a dead engine is started again."""

    @property
    def serves(self) -> bool:
        """Whether it may be given work."""
        return self.state is State.HEALTHY

    @property
    def exhausted(self) -> bool:
        """Whether it failed as often in a row as is allowed."""
        return self.failures >= self._limits.failures

    def expect(self, publication: int) -> None:
        """Another publication is current from now on; who has not verified it does not serve.

        Args:
            publication: its number. Not the policy version: training that goes back to a checkpoint publishes
                a version again, with other weights.
        """
        self._expected = publication
        self.suspend_heartbeat()  # an engine that loads weights may be slow to answer
        if self.state is State.HEALTHY and self._verified != publication:
            self.state = State.STALE

    def started(self) -> None:
        """The actor answers and its engine has loaded a model. An engine that drains is only leaving later."""
        self._require(State.RESTARTING, State.DRAINING)
        if self.state is State.RESTARTING:
            self.state = State.STALE

    def verified(self, publication: int) -> None:
        """The engine proved that it holds these weights. Those of a superseded publication do not make it healthy."""
        self._require(*LIVING)
        self._verified = publication
        if publication == self._expected:
            self.state = State.HEALTHY if self.state is State.STALE else self.state
        elif self.state in (State.HEALTHY, State.SUSPECT):
            self.state, self._asked = State.STALE, None

    def worked(self) -> None:
        """It finished work, so its failures so far are no series."""
        self.failures = 0

    def excused(self, now: float) -> None:
        """What it died of was its work."""
        self._require(State.DEAD)
        self.failures, self.restart_at = 0, now

    def asked(self, now: float) -> None:
        """A heartbeat was sent; an earlier one that still waits for its answer counts from its own time."""
        self._require(*LIVING)
        if self._asked is None:
            self._asked = now

    def suspend_heartbeat(self) -> None:
        """Its silence means nothing for a while: it is busy with something that has a time-out of its own."""
        self._asked = None
        if self.state is State.SUSPECT:
            self.state = State.HEALTHY

    def answered(self) -> None:
        """The heartbeat came back."""
        self._asked = None
        if self.state is State.SUSPECT:
            self.state = State.HEALTHY

    def check(self, now: float) -> None:
        """Draw the consequences of silence."""
        if self._asked is None or self.state not in LIVING:
            return
        silence = now - self._asked
        if silence >= self._limits.dead_s:
            self.failed(f"no answer to a heartbeat for {silence:.0f} s", now)
        elif silence >= self._limits.suspect_s and self.state is State.HEALTHY:
            self.state = State.SUSPECT

    def failed(self, reason: str, now: float) -> None:
        """It died, hung, or holds weights that could not be verified."""
        self._refuse(State.DEAD, State.RETIRED)
        self.state, self.reason = State.DEAD, reason
        self.failures += 1
        self.restart_at = now + self._limits.backoff(self.failures)
        self._verified = self._asked = None

    def restart(self, now: float) -> None:
        """A new actor takes the place of the dead one. Raises ValueError before `restart_at`."""
        self._require(State.DEAD)
        if now < self.restart_at:
            raise ValueError(f"this engine may not be started for {self.restart_at - now:.0f} s")
        self.state = State.RESTARTING

    def drain(self) -> None:
        """No new work from now on."""
        self._refuse(State.DEAD, State.RETIRED)
        self.state = State.DRAINING

    def retire(self) -> None:
        """It has left: drained, or not worth a restart."""
        self._require(State.DRAINING, State.DEAD)
        self.state = State.RETIRED

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise ValueError(f"an engine that is {self.state} cannot do this")

    def _refuse(self, *states: State) -> None:
        if self.state in states:
            raise ValueError(f"an engine that is {self.state} cannot do this")


class Outage:
    """Whether Ray fails whoever calls it, and whether that is still to be borne. One that comes and goes is reported
    once, and not each time."""

    def __init__(self, limit_s: float = OUTAGE_S) -> None:
        self.limit_s = limit_s
        self._since: float | None = None
        self._reported: float | None = None

    def failed(self, now: float) -> bool:
        """A call failed; whether that is to be reported."""
        self._since = now if self._since is None else self._since
        new = self._reported is None or now - self._reported >= self.limit_s
        self._reported = now
        return new

    def lasts_too_long(self, now: float) -> bool:
        """Whether it is no longer to be borne: nothing has succeeded for `limit_s`."""
        return self._since is not None and now - self._since >= self.limit_s

    def over(self) -> None:
        """All calls succeeded."""
        self._since = None
