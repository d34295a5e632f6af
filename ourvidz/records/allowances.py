"""Allowances of callers as the ledger keeps them, and what is left of them.

An allowance is a quota of units per window of seconds that refills continuously (GCRA, the generic cell rate
algorithm): https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ourvidz.errors import CapacityExceeded, OurvidzError, RateLimited

REFUSED = "refused"
"""First element of the answer of a script that refuses a charge."""
QUEUE_RETRY_S, USER_RETRY_S = 30.0, 5.0
"""When to try again where jobs must start first."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one request takes from one allowance: `cost` of the `quota` units per `window_s`.

    `policy` names the limit, such as `submit-user`; `subject` is who has the allowance. A cost above the
    quota takes the whole of it.
    """

    policy: str
    subject: str
    quota: float
    window_s: float
    cost: float


@dataclass(frozen=True, slots=True)
class Standing:
    """An allowance after a request: `remaining` units; all of the quota is there again in `reset_s`."""

    charge: Charge
    remaining: float
    reset_s: float


@dataclass(frozen=True, slots=True)
class Draw:
    """Units that were taken in advance: 0 when there is none for another `wait_s` seconds."""

    units: int
    wait_s: float
    standing: Standing


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The limits that a submission is held to, in the script that records it.

    `user_queued`: jobs that may wait to be started of those that are `counted_as` the same; `queue_depth`:
    jobs that may wait in the job's queue. None is no limit.
    """

    charges: tuple[Charge, ...] = ()
    user_queued: int | None = None
    queue_depth: int | None = None
    counted_as: str | None = None

    def to_json(self) -> str:
        """As the scripts read it."""
        document: dict[str, object] = {"charges": [dump_charge(charge) for charge in self.charges]}
        if self.queue_depth is not None:
            document["queue_depth"] = self.queue_depth
        if self.user_queued is not None and self.counted_as is not None:
            document |= {"user_queued": self.user_queued, "counted_as": self.counted_as}
        return json.dumps(document)


def dump_charge(charge: Charge) -> list[object]:
    """The name of the allowance, its quota and window, and the cost."""
    return [f"{charge.policy}:{charge.subject}", charge.quota, charge.window_s, charge.cost]


def load_standings(charges: Sequence[Charge], flat: Iterable[str]) -> tuple[Standing, ...]:
    """The standings in a script's answer: for each charge what remains, and the time until the reset."""
    numbers = iter(map(float, flat))
    return tuple(Standing(*each) for each in zip(charges, numbers, numbers, strict=False))


def load_draw(charge: Charge, answer: Sequence[Any]) -> Draw:
    """The answer of the script that takes units in advance."""
    (standing,) = load_standings([charge], answer[2:])
    return Draw(int(answer[0]), float(answer[1]), standing)


def load_admission(limits: JobLimits | None, flat: Sequence[str]) -> tuple[Standing, ...]:
    """The standings of a job that was admitted, or of a repeated one, which is charged nothing: none.

    Raises `RateLimited` or `CapacityExceeded` for the answer of a script that refuses: `REFUSED`, the limit,
    the seconds until the same request would pass, standings.
    """
    charges = limits.charges if limits else ()
    if not flat or flat[0] != REFUSED:
        return load_standings(charges, flat)
    assert limits is not None
    raise refusal(limits, flat[1], float(flat[2]), load_standings(charges, flat[3:]))


def refusal(limits: JobLimits, kind: str, wait_s: float, standings: tuple[Standing, ...]) -> OurvidzError:
    """The error of a job that a limit refuses: `user_queued`, `queue_depth`, or the number of a charge."""
    if kind == "queue_depth":
        return CapacityExceeded(
            f"No new jobs are accepted: {limits.queue_depth} jobs wait in this queue.",
            kind="queue",
            retry_after_s=QUEUE_RETRY_S,
        )
    if kind == "user_queued":
        return RateLimited(
            f"{limits.user_queued} jobs of this caller wait to be started.",
            rule=f"at most {limits.user_queued} waiting jobs of one user",
            retry_after_s=USER_RETRY_S,
        )
    return over_quota(limits.charges[int(kind)], wait_s, standings)


def over_quota(charge: Charge, wait_s: float, standings: tuple[Standing, ...]) -> RateLimited:
    """The error of a request that an allowance has no room for."""
    error = RateLimited(
        f"Too many requests: the limit {charge.policy} has room for this one in {math.ceil(wait_s)} s.",
        rule=f"{charge.quota:.12g} in {charge.window_s:.12g} s",
        retry_after_s=wait_s,
    )
    error.standings = standings
    return error
