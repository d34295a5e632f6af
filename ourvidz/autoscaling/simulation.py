"""A fleet on a virtual clock that follows the autoscaling policy, as Kubernetes with KEDA does."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ourvidz.autoscaling.arrivals import HOUR_S, Arrival
from ourvidz.autoscaling.policy import Demand, Policy, wanted_workers

LONGEST_IDLE_S = 86400.0
"""A simulation ends this long after its last job, whatever the idle time of the policy is."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How the fleet behaves: how often it asks for the wanted number (`poll_s`), how long a new worker takes
    to be ready (`start_s`), and for how long a lower number must hold before workers are stopped
    (`steady_s`); all in seconds."""

    poll_s: float = 15.0
    start_s: float = 90.0
    steady_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Change:
    """The number of workers from `at_s` on, those that start among them."""

    at_s: float
    workers: int


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What a simulated fleet did.

    `waits_s`: how long each job waited, in the order of their starts. `stopped_busy`: workers that were
    stopped while they ran a job. `worker_s`: paid seconds of all workers.
    """

    waits_s: tuple[float, ...]
    changes: tuple[Change, ...]
    started: int
    stopped: int
    stopped_busy: int
    worker_s: float
    ended_s: float

    @property
    def most_workers(self) -> int:
        """The largest number of workers at a time."""
        return max((change.workers for change in self.changes), default=0)

    @property
    def last_workers(self) -> int:
        """The number of workers at the end."""
        return self.changes[-1].workers if self.changes else 0

    def wait_s(self, share: float) -> float:
        """The wait that this share of the jobs did not exceed, by nearest rank; 0 without jobs."""
        ordered = sorted(self.waits_s)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0

    def workers_by_hour(self) -> list[int]:
        """The largest number of workers in each hour."""
        hours = [0] * max(1, math.ceil(self.ended_s / HOUR_S))
        ends = [change.at_s for change in self.changes[1:]] + [self.ended_s]
        for change, end_s in zip(self.changes, ends, strict=True):
            last = min(len(hours) - 1, int(max(change.at_s, end_s - 1e-9) // HOUR_S))
            for hour in range(min(int(change.at_s // HOUR_S), last), last + 1):
                hours[hour] = max(hours[hour], change.workers)
        return hours


def simulate(
    arrivals: Sequence[Arrival],
    policy: Policy,
    options: FleetOptions | None = None,
    *,
    wanted: Callable[[Demand, Policy], int] = wanted_workers,
) -> FleetReport:
    """Replay arrivals, ordered by time, until all jobs have ended and the fleet is as small as it gets."""
    return _Fleet(arrivals, policy, options or FleetOptions(), wanted).run()


@dataclass(slots=True, eq=False)
class _Running:
    """A job that a worker has claimed."""

    job: Arrival
    since_s: float


@dataclass(slots=True, eq=False)
class _Worker:
    number: int
    started_s: float
    ready: bool = False
    running: list[_Running] = field(default_factory=list)


@dataclass(slots=True)
class _Fleet:
    """The state of a simulation. Events are (time, order, what happens then)."""

    arrivals: Sequence[Arrival]
    policy: Policy
    options: FleetOptions
    wanted: Callable[[Demand, Policy], int]
    now_s: float = 0.0
    queue: deque[Arrival] = field(default_factory=deque)
    workers: list[_Worker] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    order: int = 0
    ended_jobs: int = 0
    last_end_s: float = 0.0
    last_claim_s: float | None = None
    started: int = 0
    stopped_busy: int = 0
    stopped: int = 0
    worker_s: float = 0.0

    def run(self) -> FleetReport:
        """Run all events, and report."""
        for arrival in self.arrivals:
            self._at(arrival.at_s, partial(self._submit, arrival))
        self._at(0.0, self._poll)
        while self.events:
            self.now_s, _, event = heapq.heappop(self.events)
            event()
        self.worker_s += sum(self.now_s - worker.started_s for worker in self.workers)
        return FleetReport(
            waits_s=tuple(self.waits_s),
            changes=tuple(self.changes),
            started=self.started,
            stopped=self.stopped,
            stopped_busy=self.stopped_busy,
            worker_s=self.worker_s,
            ended_s=self.now_s,
        )

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (at_s, self.order, event))

    def _submit(self, arrival: Arrival) -> None:
        self.queue.append(arrival)
        self._claim()

    def _claim(self) -> None:
        """Give queued jobs to ready workers, the oldest of each first."""
        for worker in self.workers:
            while self.queue and worker.ready and len(worker.running) < self.policy.jobs_at_a_time:
                running = _Running(self.queue.popleft(), self.now_s)
                worker.running.append(running)
                self.last_claim_s = self.now_s
                self.waits_s.append(self.now_s - running.job.at_s)
                self._at(self.now_s + running.job.run_s, partial(self._finish, worker, running))

    def _finish(self, worker: _Worker, running: _Running) -> None:
        worker.running.remove(running)
        self.ended_jobs += 1
        self.last_end_s = self.now_s
        self._claim()

    def _poll(self) -> None:
        """Ask for the wanted number, and follow it: up at once, down to the most of the last while."""
        target = self.wanted(self._demand(), self.policy)
        self.recent.append((self.now_s, target))
        while self.recent[0][0] < self.now_s - self.options.steady_s:
            self.recent.popleft()
        before = len(self.workers)
        if target > before:
            self._start(target - before)
        else:
            self._stop(before - min(before, max(number for _, number in self.recent)))
        if len(self.workers) != before or not self.changes:
            self.changes.append(Change(self.now_s, len(self.workers)))
        if self.ended_jobs == len(self.arrivals) and self.now_s - self.last_end_s > LONGEST_IDLE_S:
            return
        if self.ended_jobs < len(self.arrivals) or len(self.workers) > self.policy.minimum:
            self._at(self.now_s + self.options.poll_s, self._poll)

    def _demand(self) -> Demand:
        running = [running for worker in self.workers for running in worker.running]
        return Demand(
            queued=len(self.queue),
            queued_s=sum(job.expected_s for job in self.queue),
            running=len(running),
            running_s=sum(map(self._remaining_s, running)),
            busy=sum(bool(worker.running) for worker in self.workers),
            idle_s=None if self.last_claim_s is None else self.now_s - self.last_claim_s,
        )

    def _remaining_s(self, running: _Running) -> float:
        """What a worker reports of a job: the expected time, less its progress."""
        progress = (self.now_s - running.since_s) / running.job.run_s if running.job.run_s else 1.0
        return running.job.expected_s * (1 - min(1.0, progress))

    def _start(self, count: int) -> None:
        for _ in range(count):
            self.started += 1
            worker = _Worker(self.started, self.now_s)
            self.workers.append(worker)
            self._at(self.now_s + self.options.start_s, partial(self._become_ready, worker))

    def _become_ready(self, worker: _Worker) -> None:
        worker.ready = True
        self._claim()

    def _stop(self, count: int) -> None:
        """Stop workers: those that start first, then idle ones, the newest first; last busy ones."""
        by_use = sorted(self.workers, key=lambda worker: (bool(worker.running), worker.ready, -worker.number))
        for worker in by_use[:count]:
            self.workers.remove(worker)
            self.stopped += 1
            self.stopped_busy += bool(worker.running)
            self.worker_s += self.now_s - worker.started_s
