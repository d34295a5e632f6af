"""The demand of a queue is read from the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.autoscaling.demand import SAMPLE_SIZE, read_demand
from ourvidz.autoscaling.policy import Policy, wanted_workers
from ourvidz.ledger.store import Ledger
from tests import factories


def submit(ledger: Ledger, job_id: str, **fields: Any) -> None:
    """Queue an SDXL job, which is expected to take 30 seconds."""
    ledger.register(
        factories.image_job(id=job_id, **{"type": "sdxl_image_fast", "expected_time": 30, **fields}),
        priority=6,
    )


def claim(ledger: Ledger, job_id: str, worker_id: str = "sdxl@host-gpu0") -> Any:
    claimed = ledger.claim(job_id, 1, worker_id=worker_id, lease_s=30, token=f"t-{job_id}")
    assert claimed is not None
    return claimed


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> Ledger:
    """An empty ledger."""
    return make_ledger()


def test_an_empty_queue_has_no_demand(ledger: Ledger) -> None:
    """Nothing queued, nothing running, never used."""
    demand = read_demand(ledger, "sdxl_queue")
    assert (demand.jobs, demand.remaining_s, demand.busy, demand.idle_s) == (0, 0.0, 0, None)


def test_queued_jobs_count_with_their_expected_times(ledger: Ledger) -> None:
    """Those of this queue alone."""
    for number in range(3):
        submit(ledger, f"job-{number}", expected_time=20 + number)
    ledger.register(factories.video_job(id="clip"), priority=6)
    demand = read_demand(ledger, "sdxl_queue")
    assert (demand.queued, demand.queued_s, demand.running) == (3, 63.0, 0)
    assert read_demand(ledger, "wan_queue").queued == 1
    assert read_demand(ledger, "chat_queue").queued == 0


def test_a_running_job_counts_with_what_is_left_of_it(ledger: Ledger) -> None:
    """And its worker is busy, although it has sent no heartbeat yet."""
    submit(ledger, "job-1", expected_time=40)
    running = claim(ledger, "job-1")
    ledger.step(running, progress=25.0)
    demand = read_demand(ledger, "sdxl_queue")
    assert (demand.queued, demand.running, demand.running_s, demand.busy) == (0, 1, 30.0, 1)
    assert demand.idle_s is not None
    assert demand.idle_s < 30


def test_workers_are_counted_once(ledger: Ledger) -> None:
    """A chat worker runs several jobs, and reports itself as busy besides."""
    for number in range(3):
        submit(ledger, f"job-{number}")
        claim(ledger, f"job-{number}", "sdxl@host-gpu0" if number else "sdxl@host-gpu1")
    ledger.heartbeat(factories.worker(state="busy"))
    ledger.heartbeat(factories.worker(id="sdxl@host-gpu2", state="idle"))
    ledger.heartbeat(factories.worker("wan", state="busy"))
    demand = read_demand(ledger, "sdxl_queue")
    assert (demand.running, demand.busy) == (3, 2)


def test_a_draining_worker_that_runs_a_job_is_busy(ledger: Ledger) -> None:
    """It must not be stopped before its job ends."""
    submit(ledger, "job-1")
    claim(ledger, "job-1")
    ledger.heartbeat(factories.worker(state="busy"))
    ledger.set_draining("sdxl@host-gpu0", True)
    assert read_demand(ledger, "sdxl_queue").busy == 1


def test_a_paused_queue_says_so(ledger: Ledger) -> None:
    """Workers for jobs that nobody may claim would stand idle."""
    submit(ledger, "job-1")
    ledger.set_paused("sdxl_queue", True)
    demand = read_demand(ledger, "sdxl_queue")
    assert (demand.paused, demand.queued, demand.jobs) == (True, 1, 0)


@pytest.mark.parametrize("expected", [10**9, float("inf"), float("nan"), -5, 0])
def test_one_payload_cannot_ask_for_a_fleet(ledger: Ledger, expected: float) -> None:
    """Callers choose `expected_time`; no job runs longer than the time limit of its type."""
    from ourvidz.autoscaling.demand import remaining_s

    submit(ledger, "job-1")
    (record,) = ledger.queued("sdxl_queue")
    record.callback_metadata["expected_time"] = expected
    assert 0 < remaining_s(record) <= 120.0
    assert wanted_workers(read_demand(ledger, "sdxl_queue"), Policy(target_wait_s=1.0)) == 1


def test_prompts_that_are_to_be_enhanced_are_work_of_the_chat_workers(ledger: Ledger) -> None:
    """Their jobs wait in the queue for clips, and no job is in that for texts."""
    for number in range(4):
        enhanced = {"type": "image7b_fast_enhanced", "enhance_prompt": number < 3, "expected_time": 100}
        ledger.register(factories.video_job(id=f"clip-{number}", **enhanced), priority=6)
    demand = read_demand(ledger, "chat_queue")
    assert (demand.queued, demand.queued_s) == (3, 9.0)
    assert read_demand(ledger, "wan_queue").queued == 4
    ledger.skip_enhancement("clip-0", run=1, reason="no chat worker is there")
    assert read_demand(ledger, "chat_queue").queued == 2


def test_a_long_queue_is_estimated_from_its_head(ledger: Ledger) -> None:
    """A hundred thousand records are not read every few seconds."""
    for number in range(SAMPLE_SIZE + 40):
        submit(ledger, f"job-{number}", expected_time=30 if number < SAMPLE_SIZE else 10)
    assert read_demand(ledger, "sdxl_queue").queued_s == 30.0 * (SAMPLE_SIZE + 40)
