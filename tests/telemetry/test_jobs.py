"""The reports of ended jobs: their documents, log lines and counts, beside a receiver that hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.errors import InternalError
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim
from ourvidz.settings import load_settings
from ourvidz.tasks.attempt import Attempt
from ourvidz.telemetry import documents, jobs
from ourvidz.telemetry.jobs import EndedJobs
from ourvidz.telemetry.reporter import MetricsReporter, post_to
from ourvidz.wiring import control
from tests.factories import image_job, video_job
from tests.telemetry.conftest import MetricsReceiver

AT = 1_800_000_000.0
FILES = tuple(
    Asset(type="image", key=f"b/u/j/{number}.png", metadata={"file_size_bytes": 3 << 19})
    for number in range(3)
)
DONE = Outcome(status="completed", assets=FILES, metadata={"generation_time": 1.5, "vram_used": 812})
FAILED = Outcome.failure(InternalError("something broke"), vram_used=812)


@pytest.fixture
def claim(make_ledger: Callable[..., Ledger]) -> Claim:
    """An SDXL job with a reference that is being processed."""
    ledger = make_ledger()
    record = ledger.register(
        image_job(num_images=3, reference="user-library/user-1/a.png"), priority=6
    ).record
    claim = ledger.claim("job-1", record.run, worker_id="sdxl@host-gpu0", lease_s=10, token="t")
    assert claim is not None
    return claim


def test_the_documents_have_the_fields_that_receivers_know(claim: Claim) -> None:
    """Their names are an interface."""
    assert documents.worker_metrics(claim, DONE, at=AT) == {
        "worker_id": "sdxl@host-gpu0",
        "job_type": "sdxl_image_fast",
        "generation_time": 1.5,
        "vram_used": 812,
        "reference_mode": "single",
        "success": True,
        "timestamp": "2027-01-15T08:00:00.000Z",
    }
    assert documents.completion_stats(claim, DONE, at=AT) == {
        "job_id": "job-1",
        "user_id": "user-1",
        "job_type": "sdxl_image_fast",
        "reference_mode": "single",
        "assets_generated": 3,
        "total_size_mb": 4.5,
        "completion_timestamp": "2027-01-15T08:00:00.000Z",
    }


def test_a_job_that_failed_has_metrics_and_no_completion(claim: Claim) -> None:
    """Nothing was completed."""
    metrics = documents.worker_metrics(claim, FAILED, at=AT)
    assert (metrics["success"], metrics["generation_time"], metrics["vram_used"]) == (False, None, 812)
    assert documents.completion_stats(claim, FAILED, at=AT) is None


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The log lines of the reports."""
    lines: list[Any] = []
    monkeypatch.setattr(
        jobs._log, "info", lambda event, **fields: lines.append({"event": event, **fields}), raising=False
    )
    return lines


def test_each_document_is_one_log_line(claim: Claim, log_lines: list[Any]) -> None:
    """Also without a receiver."""
    ended = EndedJobs(None)
    ended.report(claim, DONE)
    ended.report(claim, FAILED)
    assert [line["event"] for line in log_lines] == ["worker_metrics", "completion_stats", "worker_metrics"]
    assert log_lines[1]["assets_generated"] == 3
    assert ended.counts() == {"completed": 1, "failed": 1}


def test_a_report_that_fails_changes_nothing(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job has ended, and its worker goes on."""

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no")

    monkeypatch.setattr(documents, "worker_metrics", broken)
    EndedJobs(None).report(claim, DONE)


def test_the_counters_of_prometheus_are_written_with_the_end(claim: Claim, make_ledger: Any) -> None:
    """In the same transaction, so that each end counts once."""
    ledger = make_ledger()
    for number, outcome in enumerate([DONE, FAILED]):
        record = ledger.register(video_job(f"v{number}", reference_mode="none"), priority=6).record
        assert ledger.end(record, outcome=outcome)
    counters = ledger.counters()
    assert counters["assets_generated.video_fast.count"] == 3
    assert counters["assets_generated.video_fast.bytes"] == 3 * (3 << 19)
    assert not any(name.startswith("reference_jobs") for name in counters)


def test_jobs_end_beside_a_receiver_that_hangs(
    receiver: MetricsReceiver, make_ledger: Callable[..., Ledger]
) -> None:
    """Each of them is committed while the one request of the first batch has no answer."""
    receiver.released.clear()
    ledger = make_ledger()
    running = control.build(load_settings(_env_file=None), ledger=ledger)
    reporter = MetricsReporter(post_to(receiver.url, None), interval_s=0.01)
    vars(running)["metrics_reporter"] = reporter
    with control.using(running):
        for number in range(20):
            record = ledger.register(image_job(f"job-{number}"), priority=6).record
            claim = ledger.claim(record.job_id, 1, worker_id="sdxl@host", lease_s=10, token=f"{number}")
            assert claim is not None
            Attempt(claim, "sdxl").commit(DONE)
            if not number:
                receiver.wait_until(lambda: len(receiver.bodies) == 1)
    assert ledger.counters()["jobs.sdxl_image_fast.completed"] == 20
    assert reporter.counts() == {"sent": 0, "dropped": 0}
    assert len(receiver.bodies) == 1
    receiver.released.set()
    reporter.close(20)
    sent = [document["job_id"] for document in receiver.of_kind("completion_stats")]
    assert sent == [f"job-{number}" for number in range(20)]
    assert len(receiver.of_kind("worker_metrics")) == 20


def test_the_receiver_is_that_of_the_settings(make_ledger: Any) -> None:
    """Without one nothing is sent."""
    for url, expected in (("http://metrics.example/", True), (None, False)):
        settings = load_settings(_env_file=None, **({"OURVIDZ_METRICS_URL": url} if url else {}))
        built = control.build(settings, ledger=make_ledger())
        assert (built.metrics_reporter is not None) == expected
