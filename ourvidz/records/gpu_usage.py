"""GPU usage by day, user and job type, as whole numbers in one hash a day.

A field is `<user> <type> <quantity>`: neither user ids nor types contain spaces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

EPOCH = date(1970, 1, 1)
NO_USER = "-"
"""Stands for a job without a user; a user id begins with a letter or a digit."""
MS_PER_S = 1000
MICROS = 1_000_000
"""Costs are stored in millionths of the currency."""


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """What the jobs of one type used on one day (UTC): their number, GPU-seconds of all their attempts, and
    the cost in the currency of the price; 0 without one."""

    date: date
    type: str
    jobs: int
    gpu_seconds: float
    cost: float


def usage_amounts(
    user_id: str | None, job_type: str, metadata: Mapping[str, Any], *, jobs: int = 1
) -> dict[str, int]:
    """What the end of an attempt adds to the usage of the day, by field, from `gpu_seconds` and `gpu_cost` of
    its metadata. Empty if it used no GPU."""
    seconds = metadata.get("gpu_seconds")
    total = seconds.get("total") if isinstance(seconds, Mapping) else None
    if not isinstance(total, int | float) or total <= 0:
        return {}
    cost = metadata.get("gpu_cost")
    amounts = {
        "jobs": jobs,
        "ms": round(total * MS_PER_S),
        "cost": round(cost * MICROS) if isinstance(cost, int | float) else 0,
    }
    prefix = f"{user_id or NO_USER} {job_type}"
    return {f"{prefix} {name}": amount for name, amount in amounts.items() if amount}


def day_number(day: date) -> int:
    """Days since 1970, as the key of a day ends."""
    return (day - EPOCH).days


def today() -> date:
    """The date in UTC."""
    return datetime.now(UTC).date()


def load_usage(number: int, fields: Mapping[str, str], *, user_id: str | None = None) -> list[GpuUsage]:
    """The usage of one day by job type, of one user or of all together. Damaged fields are left out."""
    sums: dict[str, Counter[str]] = {}
    for field, amount in fields.items():
        user, _, rest = field.partition(" ")
        job_type, _, quantity = rest.partition(" ")
        if amount.isdigit() and (user_id is None or user == user_id):
            sums.setdefault(job_type, Counter())[quantity] += int(amount)
    day = EPOCH + timedelta(days=number)
    return [
        GpuUsage(day, job_type, total["jobs"], total["ms"] / MS_PER_S, total["cost"] / MICROS)
        for job_type, total in sorted(sums.items())
    ]


def total_seconds(usage: Iterable[GpuUsage]) -> float:
    """The GPU-seconds of all rows together."""
    return round(sum(row.gpu_seconds for row in usage), 3)
