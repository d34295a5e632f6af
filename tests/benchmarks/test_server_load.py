"""Counters of the server, and the trace of commands."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import redis

from benchmarks.processes import differences
from benchmarks.server_load import CommandTrace, server_load
from ourvidz.embedded_redis import PrivateServer
from ourvidz.ledger.store import Ledger


@pytest.mark.skipif(sys.platform != "linux", reason="the counters of a process's writes are Linux's")
def test_requests_and_fsyncs_are_counted(start_redis: Callable[..., PrivateServer]) -> None:
    """A pipeline is one round trip, and a command that only reads is not synchronised."""
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    with redis.Redis.from_url(server.url) as client:
        client.ping()
        before = server_load(client)
        for number in range(20):
            client.set("written", number)
            client.get("written")
        pipeline = client.pipeline(transaction=False)
        for number in range(20):
            pipeline.rpush("list", number)
        pipeline.execute()
        counted = differences(before, server_load(client))
    # INFO itself is one request.
    assert counted["round_trips"] == 42
    assert 21 <= counted["fsyncs"] <= 23
    assert counted["aof_bytes"] > 20


def test_commands_are_counted_by_the_process_that_sent_them(redis_url: str) -> None:
    """A script counts under its verb, without what it calls; a transaction counts once."""
    ledger = Ledger(redis_url)
    trace = CommandTrace()
    with redis.Redis.from_url(redis_url) as client, trace.recording(redis_url):
        ledger.now()
        pipeline = client.pipeline(transaction=True)
        pipeline.set("a", 1)
        pipeline.set("b", 2)
        pipeline.execute()
    ledger.close()
    counts = trace.by_role(lambda port: "test")
    assert counts["test", "transaction"] == 1
    assert counts["test", "script now"] >= 1
    assert not [command for _, command in counts if command in ("set", "time", "hmget")]
