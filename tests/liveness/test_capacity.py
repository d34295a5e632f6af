"""The capacity for new jobs, on real servers with small limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from ourvidz.ledger.store import Ledger
from ourvidz.liveness import capacity
from ourvidz.liveness.capacity import CACHED_S, Capacity
from tests.factories import ManualClock, image_job


@pytest.fixture
def server(start_redis: Any) -> Iterator[redis.Redis]:
    """A client of a server whose memory limit a test sets."""
    with redis.Redis.from_url(start_redis("--maxmemory-policy", "noeviction").url) as client:
        yield client


@pytest.fixture
def ledger(server: redis.Redis) -> Iterator[Ledger]:
    port = server.connection_pool.connection_kwargs["port"]
    ledger = Ledger(f"redis://127.0.0.1:{port}/0")
    yield ledger
    ledger.close()


def test_jobs_are_refused_before_the_memory_is_full(server: redis.Redis, ledger: Ledger) -> None:
    """Once the server refuses writes it is too late: jobs that were accepted could not end."""
    clock = ManualClock()
    capacity_ = Capacity(ledger, max_queued=100, clock=clock)
    assert (capacity_.refusal(), capacity_.headroom().keys()) == (None, {"queue"})
    used = ledger.usage().memory_used
    server.config_set("maxmemory", 3 * used)
    clock.advance(CACHED_S)
    assert capacity_.refusal() is None
    assert 0 < capacity_.headroom()["memory"] < 1
    server.config_set("maxmemory", int(1.1 * used))
    clock.advance(CACHED_S)
    refusal = capacity_.refusal()
    assert refusal is not None
    assert (refusal.code, refusal.http_status, refusal.kind) == ("CAPACITY_EXCEEDED", 503, "memory")
    assert refusal.retry_after_s == capacity.RETRY_AFTER_S
    server.config_set("maxmemory", 3 * used)
    clock.advance(CACHED_S)
    assert capacity_.refusal() is None


def test_jobs_that_have_not_ended_count_with_what_they_will_write(
    server: redis.Redis, ledger: Ledger
) -> None:
    """A queue that fills the memory leaves none for its own endings."""
    for number in range(200):
        ledger.register(image_job(f"job-{number}"), priority=6)
    used = ledger.usage().memory_used
    server.config_set("maxmemory", int(used * 1.3))
    refusal = Capacity(ledger, max_queued=1000).refusal()
    assert refusal is not None
    assert refusal.kind == "memory"


def test_jobs_are_refused_when_too_many_are_queued(ledger: Ledger) -> None:
    """A queue that nobody can work off only makes callers wait in vain. Processed jobs do not count."""
    clock = ManualClock()
    capacity_ = Capacity(ledger, max_queued=2, clock=clock)
    for job_id in ("a", "b"):
        ledger.register(image_job(job_id), priority=6)
    refusal = capacity_.refusal()
    assert refusal is not None
    assert refusal.kind == "queue"
    ledger.claim("a", 1, worker_id="w", lease_s=10, token="t")
    assert capacity_.refusal() is not None
    clock.advance(CACHED_S)
    assert capacity_.refusal() is None


def test_jobs_are_refused_while_the_disk_of_an_embedded_server_is_almost_full(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server exits when it cannot write."""
    assert Capacity(ledger, max_queued=2, folder=tmp_path).refusal() is None
    monkeypatch.setattr(capacity, "MIN_DISK_BYTES", 1 << 60)
    refusal = Capacity(ledger, max_queued=2, folder=tmp_path).refusal()
    assert refusal is not None
    assert refusal.kind == "disk"


def test_a_server_that_cannot_be_reached_refuses_nothing_here(
    start_redis: Callable[..., Any],
) -> None:
    """The submission itself is answered with what is wrong."""
    server = start_redis()
    ledger = Ledger(server.url)
    server.kill()
    assert Capacity(ledger, max_queued=2).refusal() is None
    ledger.close()
