"""GPU usage in the ledger: by day, user and job type."""

from __future__ import annotations

from datetime import date

from ourvidz.jobs.outcome import Outcome
from ourvidz.records.gpu_usage import GpuUsage, day_number, load_usage, usage_amounts

METADATA = {"gpu_seconds": {"denoise": 2.0, "total": 2.5}, "gpu_cost": 0.001389}


def test_the_end_of_a_run_adds_its_usage_once(ledger, clock, image_job) -> None:
    """The commit is sent again after a lost answer."""
    ledger.register(image_job(user_id="ada"), priority=6)
    claim = ledger.claim("job-1", 1, worker_id="w", lease_s=30, token="t")
    assert claim is not None
    outcome = Outcome(status="completed", metadata=METADATA)
    for _ in range(2):
        assert ledger.end(claim, outcome=outcome, worker_id="w")
    today = int(clock() // 86400)
    yesterday, found = ledger.gpu_usage([today - 1, today])
    assert yesterday == {}
    assert found == {
        "ada sdxl_image_fast jobs": "1",
        "ada sdxl_image_fast ms": "2500",
        "ada sdxl_image_fast cost": "1389",
    }


def test_usage_of_attempts_is_added_without_a_job(ledger, clock) -> None:
    """An attempt that is repeated used the GPU, but its job has not ended."""
    ledger.add_gpu_usage(usage_amounts("ada", "video_fast", METADATA, jobs=0))
    [found] = ledger.gpu_usage([int(clock() // 86400)])
    assert load_usage(day_number(date(2026, 1, 2)), found) == [
        GpuUsage(date(2026, 1, 2), "video_fast", 0, 2.5, 0.001389)
    ]


def test_the_usage_of_a_day_expires(ledger) -> None:
    """After 400 days: it must not grow for ever."""
    ledger.add_gpu_usage({"ada video_fast ms": 1})
    client, day = ledger._connection.client, int(ledger.now() // 86400)
    assert 399 * 86400 < client.ttl(ledger._keys.gpu_usage(day)) <= 400 * 86400


def test_users_are_summed_or_selected() -> None:
    """By type; what cannot be read is left out."""
    fields = {
        "ada video_fast ms": "1000",
        "ada video_fast jobs": "1",
        "bob video_fast ms": "500",
        "bob video_fast jobs": "2",
        "- sdxl_image_fast ms": "250",
        "damaged": "x",
    }
    day = date(2026, 1, 2)
    number = day_number(day)
    assert load_usage(number, fields) == [
        GpuUsage(day, "sdxl_image_fast", 0, 0.25, 0),
        GpuUsage(day, "video_fast", 3, 1.5, 0),
    ]
    assert load_usage(number, fields, user_id="bob") == [GpuUsage(day, "video_fast", 2, 0.5, 0)]


def test_an_outcome_without_gpu_seconds_adds_nothing() -> None:
    """Also one of an earlier release, or a damaged one."""
    for metadata in ({}, {"gpu_seconds": 3}, {"gpu_seconds": {"total": "x"}}, {"gpu_seconds": {"total": 0}}):
        assert usage_amounts("ada", "video_fast", metadata) == {}
