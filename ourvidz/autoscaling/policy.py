"""The autoscaling policy: pure arithmetic over seconds of work and numbers of workers."""

from __future__ import annotations

import math
from dataclasses import dataclass

_DIGITS = 6
"""Digits of a number of workers that count: sums of seconds have errors in the last ones."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The work of one queue.

    `queued_s` and `running_s` are estimates of the seconds that the queued and the running jobs still take
    on one worker. `busy`: workers that run a job. `idle_s`: seconds since the last claim, None before the
    first. `paused`: no queued job is claimed.
    """

    queued: int = 0
    queued_s: float = 0.0
    running: int = 0
    running_s: float = 0.0
    busy: int = 0
    idle_s: float | None = None
    paused: bool = False

    @property
    def remaining_s(self) -> float:
        """The seconds of work that workers of this queue can do now."""
        return self.running_s + (0.0 if self.paused else self.queued_s)

    @property
    def jobs(self) -> int:
        """The jobs that workers of this queue can run now, or are running."""
        return self.running + (0 if self.paused else self.queued)


@dataclass(frozen=True, slots=True)
class Policy:
    """How the workers of one queue follow its demand.

    `target_wait_s`: the remaining work should be done in this time. `minimum` and `maximum` bound the number
    of workers. One worker is kept until `idle_s` seconds after the last claim. `jobs_at_a_time`: how many
    jobs one worker runs together, each as fast as alone.
    """

    target_wait_s: float
    minimum: int = 0
    maximum: int = 8
    idle_s: float = 300.0
    jobs_at_a_time: int = 1


def wanted_workers(demand: Demand, policy: Policy) -> int:
    """Return how many workers a queue should have: remaining seconds / target wait, rounded up.

    Not more than its jobs occupy, since a job runs on one worker; not fewer than the busy ones, also above
    the maximum, so that removing idle workers interrupts no job.
    """
    in_time = demand.remaining_s / policy.target_wait_s / policy.jobs_at_a_time
    needed = min(math.ceil(round(in_time, _DIGITS)), math.ceil(demand.jobs / policy.jobs_at_a_time))
    recently_used = demand.idle_s is not None and demand.idle_s < policy.idle_s
    if demand.jobs or recently_used:
        needed = max(needed, 1)
    return max(demand.busy, min(max(needed, policy.minimum), policy.maximum))
