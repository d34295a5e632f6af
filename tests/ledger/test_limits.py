"""Limits in the scripts that record a run: what a job is charged, when, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ourvidz.errors import CapacityExceeded, RateLimited
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.allowances import Charge, JobLimits

CANCELLED = Outcome(status="cancelled")


def charge(cost: float = 30, quota: float = 90, window_s: float = 60, policy: str = "submit-user") -> Charge:
    return Charge(policy, "user-1", quota, window_s, cost)


def limits(*charges: Charge, counted_as: str = "user-1", **depths: int) -> JobLimits:
    return JobLimits(charges or (charge(),), **depths, counted_as=counted_as)


@pytest.fixture
def add(ledger: Ledger, image_job: Callable[..., Any]) -> Callable[..., Any]:
    """Register a job that is held to limits."""
    return lambda job_id, held_to=None, **changes: ledger.register(
        image_job(job_id, **changes), priority=6, limits=held_to or limits()
    )


def test_a_quota_is_admitted_exactly_and_refills_continuously(add, ledger, clock) -> None:
    """A third of the quota is there again after a third of the window."""
    remaining = [add(f"j{number}").allowances[0].remaining for number in range(3)]
    assert remaining == pytest.approx([60, 30, 0])
    with pytest.raises(RateLimited) as refused:
        add("j3")
    assert refused.value.retry_after_s == pytest.approx(20)
    assert ledger.get("j3") is None
    assert ledger.queue_depth("sdxl_queue") == 3
    clock.advance(19.99)
    with pytest.raises(RateLimited):
        add("j3")
    clock.advance(0.02)
    assert add("j3").created


def test_a_repeated_id_is_charged_nothing(add) -> None:
    """Callers repeat a submission whose answer was lost."""
    add("j0")
    for _ in range(5):
        again = add("j0")
        assert (again.created, again.allowances) == (False, ())
    assert add("j1").allowances[0].remaining == pytest.approx(30)


def test_a_full_allowance_still_answers_repeated_ids(add) -> None:
    """Else a caller at its limit could not learn whether its job stands."""
    for number in range(3):
        add(f"j{number}")
    assert not add("j1").created


def test_of_several_allowances_all_are_charged_or_none(add) -> None:
    """A job that the user's limit refuses takes nothing from the key's."""
    wide = charge(quota=300, policy="submit-key")
    for number in range(3):
        add(f"j{number}", limits(wide, charge()))
    for _ in range(4):
        with pytest.raises(RateLimited, match="submit-user"):
            add("j3", limits(wide, charge()))
    admitted = add("j3", limits(wide))
    assert admitted.allowances[0].remaining == pytest.approx(180)


def test_a_job_above_the_whole_quota_takes_all_of_it(add, clock) -> None:
    """It would never be admitted otherwise."""
    large = limits(charge(cost=1000))
    assert add("j0", large).allowances[0].remaining == 0
    with pytest.raises(RateLimited) as refused:
        add("j1", large)
    assert refused.value.retry_after_s == pytest.approx(60)
    clock.advance(60.01)
    assert add("j1", large).created


def test_parallel_submissions_through_two_processes_are_admitted_exactly(
    make_ledger, ledger: Ledger, image_job
) -> None:
    """The check and the charge are one script."""
    other = Ledger(ledger.url, prefix=ledger._keys.prefix, clock=lambda: 1_700_000_000.0)
    quota = limits(charge(cost=30, quota=30 * 17))

    def post(number: int) -> bool:
        try:
            through = (ledger, other)[number % 2]
            return through.register(image_job(f"j{number}"), priority=6, limits=quota).created
        except RateLimited:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(post, range(60))) == 17
    assert ledger.queue_depth("sdxl_queue") == 17
    other.close()


def test_a_retry_is_charged_like_a_submission(add, ledger: Ledger, image_job) -> None:
    """Else a job that is cancelled and retried for ever would be free."""
    for number in range(3):
        add(f"j{number}")
    ledger.end(ledger.get("j0"), outcome=CANCELLED)
    with pytest.raises(RateLimited):
        ledger.reopen("j0", priority=6, limits=limits())
    assert ledger.get("j0").status == "cancelled"
    assert ledger.get("j0").run == 1


def test_waiting_jobs_of_a_user_are_capped(add, ledger: Ledger, clock) -> None:
    """A slot is free as soon as a job has started; other users have their own."""
    wide, depth = charge(quota=9000), {"user_queued": 3}
    for number in range(3):
        add(f"j{number}", limits(wide, **depth))
    with pytest.raises(RateLimited, match="wait to be started"):
        add("j3", limits(wide, **depth))
    add("other", limits(wide, **depth, counted_as="user-2"))
    assert ledger.claim("j0", 1, worker_id="w", lease_s=30, token="t") is not None
    ledger._connection.client.delete(f"{ledger._keys.prefix}waiting_looked:user-1")
    assert add("j3", limits(wide, **depth)).created
    with pytest.raises(RateLimited):
        add("j4", limits(wide, **depth))


def test_what_has_started_does_not_pile_up(add, ledger: Ledger, clock) -> None:
    """Of a user below the limit too."""
    wide = charge(quota=9000)
    for number in range(20):
        add(f"j{number}", limits(wide, user_queued=1000))
        clock.advance(1)
        ledger.claim(f"j{number}", 1, worker_id="w", lease_s=30, token=f"t{number}")
    assert ledger._connection.client.zcard(f"{ledger._keys.prefix}waiting:user-1") <= 2


def test_a_queue_has_a_depth(add, ledger: Ledger) -> None:
    """Whoever fills it: the service has no capacity, which is no fault of the caller."""
    for number in range(2):
        add(f"j{number}", limits(charge(quota=9000), queue_depth=2), user_id=f"user-{number}")
    with pytest.raises(CapacityExceeded) as refused:
        add("j2", limits(charge(quota=9000), queue_depth=2))
    assert refused.value.kind == "queue"


@pytest.mark.parametrize("value", ["", "many", "-7", "nan", "inf", "9" * 18, None])
def test_a_damaged_allowance_counts_as_full_or_as_empty_but_no_longer_than_a_window(
    add, ledger: Ledger, clock, value
) -> None:
    """Whatever is at the key, submissions go on, at the latest after the window."""
    client, prefix = ledger._connection.client, ledger._keys.prefix
    for name in ("allowance:submit-user:user-1", "waiting:user-1"):
        if value is None:
            client.sadd(f"{prefix}{name}", "text")
        else:
            client.set(f"{prefix}{name}", value)
    clock.advance(60.01)
    assert add("j0", limits(charge(), user_queued=1)).created


def test_an_allowance_expires_when_it_is_full(add, ledger: Ledger) -> None:
    """Made-up users leave nothing behind."""
    add("j0")
    assert (
        20_000 < ledger._connection.client.pttl(f"{ledger._keys.prefix}allowance:submit-user:user-1") < 26_000
    )


def test_units_are_drawn_in_advance_as_far_as_there_are_any(ledger: Ledger, clock) -> None:
    """At least one, or none and the time until there is one."""
    wanted = charge(cost=4, quota=10, window_s=10, policy="read-key")
    assert [ledger.draw_allowance(wanted).units for _ in range(4)] == [4, 4, 2, 0]
    assert ledger.draw_allowance(wanted).wait_s == pytest.approx(1)
    clock.advance(1)
    assert ledger.draw_allowance(wanted).units == 1
