"""The rules by which an installation is degraded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ourvidz.records.record import Worker
from ourvidz.records.vitals import QueueVitals, Vitals
from ourvidz.web.watchdog import degradations
from tests.factories import worker

LIMITS_S = {"sdxl_queue": 900.0, "wan_queue": 900.0, "chat_queue": 900.0}
AT_WORK = (worker(),)
HEALTHY = Vitals(sweep_age_s=2)


def codes(
    vitals: Vitals = HEALTHY,
    workers: Sequence[Worker] = AT_WORK,
    paused: frozenset[str] = frozenset(),
    uptime_s: float = 1000,
) -> list[str]:
    found = degradations(vitals, workers, paused, uptime_s=uptime_s, stuck_after_s=LIMITS_S)
    assert all(reason.message.endswith(".") and "host" not in reason.message for reason in found)
    return [reason.code for reason in found]


def queue(**ages: Any) -> Vitals:
    return Vitals(sweep_age_s=2, queues={"sdxl_queue": QueueVitals(**ages)})


def test_an_installation_at_work_is_healthy() -> None:
    """With waiting jobs and callbacks that are due."""
    busy = Vitals(
        sweep_age_s=2, outbox_lag_s=20, queues={"sdxl_queue": QueueVitals(oldest_s=5000, last_claim_s=10)}
    )
    assert codes(busy) == []


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ((), ["no_worker"]),
        ((worker("io"),), ["no_worker"]),
        ((worker(draining=True),), ["no_worker"]),
        ((worker(draining=True), worker("wan")), []),
        ((worker(state="failed", models=()), worker("wan")), ["workers_failed"]),
        ((worker(detail={"error": "/models/x is missing"}), worker("wan")), ["workers_failed"]),
        ((worker(detail={"error": "/models/x is missing"}),), ["no_worker", "workers_failed"]),
    ],
)
def test_workers_that_do_not_take_jobs(workers: Sequence[Worker], expected: list[str]) -> None:
    """Drained by an operator, or unable to load their models: neither runs a job."""
    assert codes(workers=workers) == expected


def test_a_sweep_that_is_overdue_is_told_from_a_start() -> None:
    """Until a keeper could have swept since this process started, nothing is wrong."""
    assert codes(Vitals(sweep_age_s=61)) == ["sweep_stale"]
    assert codes(Vitals(sweep_age_s=9999), uptime_s=30) == []
    assert codes(Vitals(sweep_age_s=None), uptime_s=30) == []
    assert codes(Vitals(sweep_age_s=None), uptime_s=61) == ["sweep_stale"]


def test_a_sweep_that_fails_in_a_part() -> None:
    """The other parts go on, so nobody would notice."""
    assert codes(Vitals(sweep_age_s=2, failed_phases=("wan_queue",))) == ["sweep_failing"]


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        ({"oldest_s": 901, "last_claim_s": None}, ["queue_stuck"]),
        ({"oldest_s": 901, "last_claim_s": 5000}, ["queue_stuck"]),
        ({"oldest_s": 5000, "last_claim_s": 899}, []),
        ({"oldest_s": 899, "last_claim_s": 5000}, []),
        ({"oldest_s": None, "last_claim_s": 5000}, []),
    ],
)
def test_a_queue_is_stuck_when_jobs_wait_and_none_is_started(
    ages: dict[str, float | None], expected: list[str]
) -> None:
    """A long queue that moves is load, not a fault."""
    assert codes(queue(**ages)) == expected
    assert codes(queue(**ages), paused=frozenset({"sdxl_queue"})) == []


@pytest.mark.parametrize(
    ("vitals", "expected"),
    [
        (Vitals(sweep_age_s=2, stuck_leases=1), ["leases_stuck"]),
        (Vitals(sweep_age_s=2, outbox_lag_s=121), ["outbox_lag"]),
        (Vitals(sweep_age_s=2, quarantined=3), ["quarantined_jobs"]),
    ],
)
def test_what_recovery_and_delivery_leave_undone(vitals: Vitals, expected: list[str]) -> None:
    """Each has a code of its own, for alerts."""
    assert codes(vitals) == expected
