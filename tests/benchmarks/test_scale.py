"""The short form of the benchmarks of scale that need no worker."""

from __future__ import annotations

import pytest

from benchmarks.scale import followers, operations, retention


def test_finished_jobs_are_bounded_by_the_retention_time() -> None:
    """Once the first jobs have been kept for a week, a month of further work adds no job, key or byte."""
    figures = retention.measure(jobs_a_day=6)
    assert figures["day 30: jobs"] == figures["day 9: jobs"] == 6 * retention.RETENTION_DAYS
    assert figures["ratio day 30 to day 9: keys"] == pytest.approx(1, abs=0.05)
    assert figures["ratio day 30 to day 9: memory MiB"] < 1.2


def test_the_latency_of_a_token_is_measured_for_every_follower() -> None:
    """Each follower has a connection and a job of its own."""
    figures = followers.measure(20, tokens=10)
    assert figures["20 followers: token latency p50 ms"] > 0
    assert figures["20 followers: memory MiB"] >= figures["shim without followers: memory MiB"]


@pytest.mark.system
def test_operations_are_compared_with_an_empty_server_in_turn() -> None:
    """The ratios are of processor time of the server, so they hold on a loaded machine."""
    figures = operations.measure(30, samples=3)
    for name in ("submission", "next job, claim and end", "list of jobs", "sweep"):
        assert figures[f"{name}: ratio"] > 0
    assert figures["30 queued: server memory bytes a job"] > 1000
