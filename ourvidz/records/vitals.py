"""Numbers that tell whether recovery, queues and deliveries are alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class QueueVitals:
    """Ages in seconds: of the due job that has waited longest, and of the last claim; None for none."""

    oldest_s: float | None = None
    last_claim_s: float | None = None


@dataclass(frozen=True, slots=True)
class Vitals:
    """`sweep_age_s`: seconds since the last sweep, None before the first; `failed_phases` are those of that
    sweep. `stuck_leases`: leases that ended over a minute ago. `outbox_lag_s`: for how long the most overdue
    callback has been due, `pending_callbacks` their number, due or not. `quarantined`: jobs that are set
    aside. `queues` by name."""

    sweep_age_s: float | None = None
    failed_phases: tuple[str, ...] = ()
    stuck_leases: int = 0
    outbox_lag_s: float = 0.0
    pending_callbacks: int = 0
    quarantined: int = 0
    queues: Mapping[str, QueueVitals] = field(default_factory=dict)
