"""Workers and paused queues: heartbeats, draining, and which workers take new jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from ourvidz.jobs.images import ImageJob
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Worker
from tests.factories import worker
from tests.ledger.conftest import Clock


def ids(workers: list[Worker]) -> list[str]:
    return sorted(each.id for each in workers)


@pytest.fixture
def fleet(ledger: Ledger, clock: Clock) -> Ledger:
    """A ledger with two active workers, and with one each that is offline, draining, or of a paused queue."""
    ledger.heartbeat(worker(id="sdxl@silent"))
    clock.advance(16)
    ledger.heartbeat(worker(id="sdxl@active", state="busy"))
    ledger.heartbeat(worker("chat", id="chat@active"))
    ledger.heartbeat(worker(id="sdxl@stopped"))
    ledger.mark_offline("sdxl@stopped")
    ledger.heartbeat(worker(id="sdxl@draining"))
    ledger.set_draining("sdxl@draining", True)
    ledger.heartbeat(worker("wan", id="wan@paused"))
    ledger.set_paused("wan_queue", True)
    return ledger


def test_online_workers_include_draining_ones_and_those_of_paused_queues(fleet: Ledger) -> None:
    """A worker is online as long as it sends heartbeats and has not been marked as offline."""
    assert ids(fleet.online_workers()) == ["chat@active", "sdxl@active", "sdxl@draining", "wan@paused"]


def test_active_workers_are_online_not_draining_and_their_queue_not_paused(fleet: Ledger) -> None:
    """Only these workers take new jobs."""
    assert ids(fleet.active_workers()) == ["chat@active", "sdxl@active"]


def test_workers_that_are_gone_are_not_read_to_find_those_online(ledger: Ledger, clock: Clock) -> None:
    """Hosts that come and go leave hundreds a day, and every look at a queued job asks for those online."""

    def bytes_of(read: Callable[[], object]) -> int:
        with redis.Redis.from_url(ledger.url) as client:
            before = client.info("stats")["total_net_output_bytes"]
            read()
            return int(client.info("stats")["total_net_output_bytes"] - before)

    def read() -> None:
        assert ids(ledger.online_workers()) == ids(ledger.active_workers()) == ["sdxl@here"]

    ledger.heartbeat(worker(id="sdxl@here"))
    alone = bytes_of(read)
    for number in range(50):
        ledger.heartbeat(worker(id=f"sdxl@gone-{number}"))
    clock.advance(60)
    ledger.heartbeat(worker(id="sdxl@here"))
    assert bytes_of(read) < alone + 500
    assert len(ledger.workers()) == 51


def test_online_and_active_workers_are_filtered_by_family_and_queue(fleet: Ledger) -> None:
    """Both filters of `active_workers` must match."""
    assert ids(fleet.online_workers(family="sdxl")) == ["sdxl@active", "sdxl@draining"]
    assert ids(fleet.active_workers(family="sdxl")) == ["sdxl@active"]
    assert ids(fleet.active_workers(queue="chat_queue")) == ["chat@active"]
    assert ids(fleet.active_workers(queue="chat_queue", family="sdxl")) == []
    assert ids(fleet.active_workers(queue="wan_queue")) == []


def test_workers_are_active_again_after_a_drain_or_pause_is_revoked(fleet: Ledger) -> None:
    """Resuming needs no new heartbeat."""
    fleet.set_draining("sdxl@draining", False)
    fleet.set_paused("wan_queue", False)
    assert ids(fleet.active_workers()) == ["chat@active", "sdxl@active", "sdxl@draining", "wan@paused"]


def test_heartbeats_are_timed_by_the_clock_of_the_ledger(ledger: Ledger, clock: Clock) -> None:
    """A worker on a host with a wrong clock is not shown as offline."""
    sent = worker(seen_at=5.0)
    ledger.heartbeat(sent)
    assert ledger.workers() == [replace(sent, seen_at=clock.time)]
    assert ledger.queue_seen_at("sdxl_queue") == clock.time
    assert ledger.queue_seen_at("wan_queue") is None


def test_a_worker_without_heartbeats_is_offline_and_after_a_day_deleted(ledger: Ledger, clock: Clock) -> None:
    """A crashed worker is detected by its missing heartbeats."""
    ledger.heartbeat(worker())
    clock.advance(15)
    assert ledger.workers()[0].state == "idle"
    clock.advance(1)
    assert ledger.workers()[0].state == "offline"
    clock.advance(86400)
    assert ledger.workers() == []
    assert ledger.queue_seen_at("sdxl_queue") == clock.time - 86416


def test_a_worker_marked_offline_is_offline_until_its_next_heartbeat(ledger: Ledger) -> None:
    """A clean shutdown is visible at once, not only after missing heartbeats."""
    ledger.heartbeat(worker())
    ledger.mark_offline(worker().id)
    ledger.mark_offline("nobody")
    assert [each.state for each in ledger.workers()] == ["offline"]
    ledger.heartbeat(worker(state="busy"))
    assert ledger.workers()[0].state == "busy"


def test_a_heartbeat_keeps_the_draining_flag(ledger: Ledger) -> None:
    """Only an operator clears the flag."""
    assert not ledger.set_draining(worker().id, True)
    ledger.heartbeat(worker())
    assert ledger.set_draining(worker().id, True)
    ledger.heartbeat(worker())
    assert ledger.workers()[0].draining
    assert ledger.set_draining(worker().id, False)
    assert not ledger.workers()[0].draining


def test_a_draining_worker_claims_nothing(ledger: Ledger, image_job: Callable[..., ImageJob]) -> None:
    """The drain broadcast may be lost, so the claim itself is refused."""
    ledger.heartbeat(worker(id="sdxl@a"))
    ledger.register(image_job(), priority=6)
    ledger.mark_published("job-1", 1)
    ledger.set_draining("sdxl@a", True)
    assert ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="t") is None
    record = ledger.get("job-1")
    assert record is not None
    assert record.published_at is None
    assert ledger.claim("job-1", 1, worker_id="sdxl@b", lease_s=10, token="u") is not None


def test_queues_are_paused_independently(ledger: Ledger) -> None:
    """Pausing is idempotent and affects one queue only."""
    ledger.set_paused("sdxl_queue", True)
    ledger.set_paused("sdxl_queue", True)
    ledger.set_paused("wan_queue", True)
    ledger.set_paused("wan_queue", False)
    assert ledger.paused_queues() == frozenset({"sdxl_queue"})


@pytest.mark.parametrize("state", ["starting", "failed"])
def test_a_worker_without_loaded_models_does_not_make_its_queue_seen(
    ledger: Ledger, clock: Clock, state: str
) -> None:
    """One that dies while it loads them, and is started again for ever, would keep submissions accepted."""
    ledger.heartbeat(worker())
    seen_at = clock.time
    clock.advance(60)
    ledger.heartbeat(worker(state=state, models=()))
    assert ledger.queue_seen_at("sdxl_queue") == seen_at
    ledger.heartbeat(worker(state="busy"))
    assert ledger.queue_seen_at("sdxl_queue") == clock.time
