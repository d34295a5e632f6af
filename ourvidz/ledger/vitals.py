"""Numbers that tell whether recovery, queues and deliveries are alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.base import LedgerBase

STUCK_S = 60.0
"""A lease that ended longer ago is stuck: sweeps rescue its job within seconds."""


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


class VitalsOperations(LedgerBase):
    """The verb of health checks and metrics."""

    def vitals(self) -> Vitals:
        """Read the vitals in one round trip."""
        names = list(QUEUES.values())
        answer = self._connection.run_script("vitals", STUCK_S, " ".join(names), quick=True)
        now, swept_at, failed, stuck, due_at, quarantined, pending, *rows = answer

        def age_s(at: str) -> float | None:
            return max(0.0, float(now) - float(at)) if at else None

        return Vitals(
            sweep_age_s=age_s(swept_at),
            failed_phases=tuple(failed.split()),
            stuck_leases=int(stuck),
            outbox_lag_s=age_s(due_at) or 0.0,
            pending_callbacks=int(pending),
            quarantined=int(quarantined),
            queues={
                name: QueueVitals(age_s(since), age_s(claimed))
                for name, since, claimed in zip(names, rows[::2], rows[1::2], strict=True)
            },
        )
