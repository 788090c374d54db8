"""A SIMULATION of the training loop's schedule: what overlap can gain, from phase times, before anyone buys a GPU.

    python benchmarks/schedule_simulation.py                 # the tables of docs/measurements.md
    python benchmarks/schedule_simulation.py --jitter 0.3    # generation times that vary from step to step

Nothing is sampled or learned. The batches are admitted by the real `Admission`; each goes through encode → generate →
reward → learn → publish, one phase of a kind at a time, on devices that it may have to share:

- On *own* devices a phase runs at full speed, and two phases on the same device take turns. A phase that takes t on all
  devices takes t · (fixed + (1 − fixed) / share) on a share of them; `fixed` is the part that more devices do not make
  shorter, such as the tail of the longest samples. With `fixed` = 0 nothing can be gained by dividing devices.
- On *shared* cores phases run at the same time and slow each other down once they keep more than all cores busy.

With streams a batch consists of parts that leave the engines one after the other: the first after `FIRST` of the time
of the whole, the others at equal distances. Each part is scored, and learned from, as soon as it is there and what
comes before it is done; the engines go on meanwhile.

The bound is what no schedule can beat: the busiest device, and the way of a batch through all phases divided by the
S + 1 batches that may be under way.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.training.admission import Admission

STAGES = ("encode", "generate", "reward", "learn", "publish")
Job = tuple[str, int, int]
"""Stage, batch, part."""
PARTS = 8
"""Of a batch that is streamed."""
FIRST = 0.3
"""ASSUMED: the share of the sampling time after which the first part of a batch is whole."""
STREAMS = {"": (), "rewards": ("generate", "reward"), "rewards, learner": ("generate", "reward", "learn")}
"""The stages that work part by part."""


@dataclass(frozen=True)
class Phase:
    """Seconds of a phase, where it runs, and how many cores it keeps busy there (shared cores only)."""

    seconds: float
    device: str
    cores: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """What is simulated.

    Attributes:
        cores: all phases share so many cores; None gives every device to one phase at a time.
        update: `drain` or `inflight`.
        streams: see `STREAMS`.
    """

    phases: Mapping[str, Phase]
    staleness: int
    update: str = "drain"
    cores: float | None = None
    steps: int = 60
    jitter: float = 0.0
    streams: str = ""

    def parts(self, stage: str) -> int:
        return PARTS if stage in STREAMS[self.streams] else 1

    def seconds(self, stage: str, part: int) -> float:
        """Of a part of a batch. Sampling is one job after the other here, although all parts are sampled at once: what
        counts is when each is there."""
        whole = self.phases[stage].seconds
        if self.parts(stage) == 1:
            return whole
        if stage != "generate":
            return whole / PARTS
        return whole * (FIRST if part == 0 else (1 - FIRST) / (PARTS - 1))


def simulate(schedule: Schedule) -> float:
    """Seconds per step, over the steps between the first and the last quarter: at the end nothing runs ahead."""
    admission = Admission(schedule.staleness, schedule.steps)
    draw = random.Random(0)
    spread = [max(0.1, draw.gauss(1.0, schedule.jitter)) for _ in range(schedule.steps)]
    waiting: list[Job] = []  # in the order in which they became possible
    running: dict[Job, float] = {}  # work that is left, in seconds at full speed
    scored: set[tuple[int, int]] = set()
    learned, version, now, published = 0, 0, 0.0, []
    while version < schedule.steps:
        waiting += [("encode", rollout_batch, 0) for rollout_batch in admission.admit(version)]
        for job in list(waiting):
            if _may_start(job, running, waiting, schedule):
                waiting.remove(job)
                stage, rollout_batch, part = job
                factor = spread[rollout_batch] if stage == "generate" else 1.0
                running[job] = schedule.seconds(stage, part) * factor
        speeds = {job: _speed(job, running, schedule) for job in running}
        passed = min(left / speeds[job] for job, left in running.items() if speeds[job] > 0)
        now += passed
        for job, left in list(running.items()):
            running[job] = left - passed * speeds[job]
            if running[job] > 1e-9:
                continue
            del running[job]
            stage, rollout_batch, part = job
            last = part == schedule.parts(stage) - 1
            if stage == "encode":
                waiting.append(("generate", rollout_batch, 0))
            elif stage == "generate":
                if not last:
                    waiting.insert(0, ("generate", rollout_batch, part + 1))  # it is under way
                waiting.append(("reward", rollout_batch, part))
            elif stage == "reward":
                scored.add((rollout_batch, part))
            elif stage == "learn":
                learned += 1
                if last:
                    waiting.insert(0, ("publish", rollout_batch, 0))  # before samples that wait to begin
            else:
                version, learned = version + 1, 0
                published.append(now)
        learning = any(stage in ("learn", "publish") for stage, *_ in [*running, *waiting])
        if not learning and learned < schedule.parts("learn") and _is_scored(version, learned, scored, schedule):
            if learned == 0:
                admission.train(version, version)
            waiting.append(("learn", version, learned))
    first, last_step = schedule.steps // 4, schedule.steps - schedule.steps // 4
    return (published[last_step] - published[first]) / (last_step - first)


def _is_scored(version: int, part: int, scored: set[tuple[int, int]], schedule: Schedule) -> bool:
    """Whether what the learner does next is there: the part, or the whole batch where it does not work by parts."""
    parts = [part] if schedule.parts("learn") > 1 else range(schedule.parts("reward"))
    return all((version, index) in scored for index in parts)


def _may_start(job: Job, running: Mapping[Job, float], waiting: list[Job], schedule: Schedule) -> bool:
    stage, _, part = job
    stages = {name for name, *_ in running}
    if stage in stages:
        return False
    if stage == "publish":
        under_way = "generate" in stages or any(name == "generate" and later for name, _, later in waiting)
        return schedule.update == "inflight" or not under_way
    publishes = "publish" in stages or any(name == "publish" for name, *_ in waiting)
    if stage == "generate" and part == 0 and publishes:
        return False
    if schedule.cores is not None:
        return True
    device = schedule.phases[stage].device
    return all(schedule.phases[name].device != device for name in stages)


def _speed(job: Job, running: Mapping[Job, float], schedule: Schedule) -> float:
    stages = {stage for stage, *_ in running}
    if "publish" in stages:
        stages.discard("generate")  # frozen
    if job[0] not in stages:
        return 0.0
    if schedule.cores is None:
        return 1.0
    return min(1.0, schedule.cores / sum(schedule.phases[stage].cores for stage in stages))


def bound(schedule: Schedule) -> float:
    """Seconds per step that no schedule with this staleness can beat."""
    phases = schedule.phases
    # Of what is streamed, the last part alone must follow the last sample.
    way = sum(phase.seconds / (schedule.parts(stage) if stage != "generate" else 1) for stage, phase in phases.items())
    latency = way / (schedule.staleness + 1)
    # A publication occupies engines and learner, whatever its device is called.
    chains = [phases[stage].seconds + phases["publish"].seconds for stage in ("generate", "learn")]
    if schedule.cores is not None:
        return max(latency, *chains, sum(p.seconds * p.cores for p in phases.values()) / schedule.cores)
    devices = {phase.device for phase in phases.values()}
    busy = [sum(p.seconds for p in phases.values() if p.device == device) for device in devices]
    return max(latency, *chains, *busy)


@dataclass(frozen=True)
class Cluster:
    """Phase times on *all* devices.

    Attributes:
        seconds: by stage.
        groups: the device groups that share the devices, with their stages; stages elsewhere run on CPUs.
    """

    name: str
    trajectories: int
    seconds: Mapping[str, float]
    groups: Mapping[str, tuple[str, ...]]
    devices: int = 8

    def divided(self, devices: Mapping[str, int], fixed: float) -> dict[str, Phase]:
        """Phases on own devices."""
        phases = {}
        for stage, seconds in self.seconds.items():
            group = next((name for name, stages in self.groups.items() if stage in stages), None)
            if group is None:
                phases[stage] = Phase(seconds, "cpu " + stage)
            else:
                phases[stage] = Phase(seconds * (fixed + (1 - fixed) * self.devices / devices[group]), group)
        return phases

    def divisions(self) -> Iterator[dict[str, int]]:
        for counts in itertools.product(range(1, self.devices), repeat=len(self.groups)):
            if sum(counts) == self.devices:
                yield dict(zip(self.groups, counts, strict=True))


DEMO = {"encode": 0.177, "generate": 0.548, "reward": 0.059, "learn": 0.428, "publish": 0.101}
"""Seconds of the ASR demo's phases, one after the other with one thread each (docs/measurements.md, Overlap)."""
DEMO_CORES = 1.16
"""How many cores they kept busy."""

ASR = Cluster(
    "ASR, 0.7B encoder + 7B LM on 8 GPUs: 54.6 s a step (2509.18569), its division into phases ASSUMED",
    trajectories=32 * 12,
    seconds={"encode": 4.0, "generate": 24.0, "reward": 0.6, "learn": 24.0, "publish": 2.0},
    groups={"engines": ("encode", "generate"), "learner": ("learn", "publish")},
)
TTS = Cluster(
    "TTS, 0.5B LM on 8 GPUs: 16.73 s of flow decoding a step (2509.18569), the other phases ASSUMED",
    trajectories=128,
    seconds={"encode": 0.2, "generate": 6.0, "reward": 18.7, "learn": 3.0, "publish": 0.5},
    groups={"engines": ("encode", "generate"), "rewards": ("reward",), "learner": ("learn", "publish")},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jitter", type=float, default=0.0, help="relative standard deviation of generation times")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    demo_table(args.staleness, args.jitter)
    for cluster in (ASR, TTS):
        cluster_table(cluster, args.staleness, args.jitter)


def demo_table(staleness: list[int], jitter: float) -> None:
    print("\nSIMULATED: the ASR demo on 2 shared cores, 256 trajectories a step, phase times as measured.\n")
    print("| cores a phase keeps busy | S | streams | s / step | trajectories/s | faster | bound, s |")
    print("|--:|--:|---|--:|--:|--:|--:|")
    for cores in (DEMO_CORES, 1.3, 1.6, 2.0):
        phases = {name: Phase(seconds, name, cores) for name, seconds in DEMO.items()}
        first: float | None = None
        for s, streams in _rows(staleness):
            schedule = Schedule(phases, s, cores=2.0, jitter=jitter, streams=streams)
            seconds = simulate(schedule)
            first = first or seconds
            times = f"{seconds:.2f} | {256 / seconds:.0f} | {first / seconds:.2f}× | {bound(schedule):.2f}"
            print(f"| {cores} | {s} | {streams} | {times} |")


def _rows(staleness: list[int]) -> Iterator[tuple[int, str]]:
    """Without staleness with each kind of stream, with staleness with all."""
    for s in staleness:
        yield from ((s, streams) for streams in STREAMS if s == 0 or streams == list(STREAMS)[-1])


def cluster_table(cluster: Cluster, staleness: list[int], jitter: float) -> None:
    together = {name: Phase(seconds, "all") for name, seconds in cluster.seconds.items()}
    first = simulate(Schedule(together, 0, jitter=jitter))
    print(f"\nSIMULATED: {cluster.name}.\nPhases on all devices, s: {_list(cluster.seconds)}.")
    print("The division of the devices and the kind of update are the best for each row. Idle: engines and learner.\n")
    print(
        "| fixed | placement | S | streams | update | devices | s / step | trajectories/s | faster | bound, s | idle |"
    )
    print("|--:|---|--:|---|---|---|--:|--:|--:|--:|---|")
    rate = f"{cluster.trajectories / first:.1f}"
    print(f"| | colocated | 0 | | | in turn | {first:.1f} | {rate} | 1.00× | {first:.1f} | |")
    for fixed in (0.0, 0.25, 0.5, 0.75):
        for s, streams in _rows(staleness):
            options = [
                (simulate(schedule), schedule, devices)
                for update in ("drain", "inflight")
                for devices in cluster.divisions()
                for schedule in [Schedule(cluster.divided(devices, fixed), s, update, jitter=jitter, streams=streams)]
            ]
            seconds, schedule, devices = min(options, key=lambda option: option[0])
            rate = f"{cluster.trajectories / seconds:.1f}"
            times = f"{seconds:.1f} | {rate} | {first / seconds:.2f}× | {bound(schedule):.1f}"
            row = f"{s} | {streams} | {schedule.update if s else ''} | {_list(devices)}"
            print(f"| {fixed} | disaggregated | {row} | {times} | {_idle(schedule, seconds)} |")


def _idle(schedule: Schedule, seconds: float) -> str:
    """Share of a step in which engines and learner have nothing to do."""
    busy = [
        sum(schedule.phases[stage].seconds for stage in stages)
        for stages in (("encode", "generate", "publish"), ("learn", "publish"))
    ]
    return ", ".join(f"{max(0.0, 1 - work / seconds):.0%}" for work in busy)


def _list(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


if __name__ == "__main__":
    main()
