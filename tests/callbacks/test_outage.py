"""A receiver that is down for a day, on a clock that the test advances."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.callbacks.delivery import CallbackSender, Target
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import JobError, Outcome
from ourvidz.ledger.store import Ledger

SECRET = "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBzZWNyZXQga2V5IQ=="
DAY_S = 24 * 3600
PERIOD_S = 900
JOB_EVERY_S = 2 * 3600
"""A job ends this often during the outage."""
DONE = Outcome(status="completed")
FAILED = Outcome(status="failed", error=JobError(code="OOM_ERROR", message="out of memory", retryable=True))


@pytest.fixture
def ledger(clock: Any, make_ledger: Callable[..., Ledger]) -> Ledger:
    """A ledger on the tests' clock."""
    return make_ledger(clock=clock)


def end_run(ledger: Ledger, job_id: str, run: int, outcome: Outcome) -> None:
    """Claim a registered job and end it."""
    claim = ledger.claim(job_id, run, worker_id="sdxl@host-cpu", lease_s=10, token=f"{job_id}-{run}")
    assert claim is not None
    assert ledger.end(claim, outcome=outcome)


def test_after_a_day_every_ending_arrives_in_order_and_once(
    receiver: Any, clock: Any, ledger: Ledger, make_job: Callable[..., ImageJob]
) -> None:
    """Every other job fails, is retried by an operator and then completed: it has two endings."""
    target = Target(default_url=receiver.url, webhook_secrets=(SECRET,), worker_version="1", timeout_s=5.0)
    sender = CallbackSender(ledger, target, rng=random.Random(1))
    expected: dict[str, list[str]] = {}

    def deliver_what_is_due() -> None:
        for job_id in ledger.due_deliveries():
            sender.deliver(job_id)

    receiver.down.set()
    for elapsed in range(0, DAY_S, PERIOD_S):
        if elapsed % JOB_EVERY_S == 0:
            job_id = f"job-{elapsed}"
            ledger.register(make_job(job_id), priority=6)
            end_run(ledger, job_id, 1, DONE if elapsed % (2 * JOB_EVERY_S) else FAILED)
            expected[job_id] = ["completed"]
            if elapsed % (2 * JOB_EVERY_S) == 0:
                end_run(ledger, job_id, ledger.reopen(job_id, priority=6).run, DONE)
                expected[job_id] = ["failed", "completed"]
        deliver_what_is_due()
        clock.advance(PERIOD_S)
    assert receiver.posts == []
    assert ledger.list_events("dead") == []

    receiver.down.clear()
    for _ in range(2 * 3600 // PERIOD_S):
        deliver_what_is_due()
        clock.advance(PERIOD_S)
    endings: dict[str, list[str]] = defaultdict(list)
    for post in receiver.posts:
        if post.payload["status"] != "processing":
            endings[post.payload["job_id"]].append(post.payload["status"])
    assert endings == expected
    ids = [post.headers["webhook-id"] for post in receiver.posts]
    assert len(ids) == len(set(ids)), "an event arrived twice"
    assert ledger.list_events("pending") == []
