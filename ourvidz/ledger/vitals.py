"""Numbers that tell whether recovery, queues and deliveries are alive."""

from __future__ import annotations

from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.base import LedgerBase
from ourvidz.records.vitals import QueueVitals, Vitals

STUCK_S = 60.0
"""A lease that ended longer ago is stuck: sweeps rescue its job within seconds."""


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
