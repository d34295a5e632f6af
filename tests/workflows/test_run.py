"""The running attempt: progress, cancel flag, time limit, lease, puts and previews."""

from __future__ import annotations

import base64
import gc
import io
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.errors import Cancelled, JobTimeout, StorageError, WorkerUnavailable
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import PreviewRenderer
from ourvidz.records.record import Claim, Verdict
from ourvidz.storage.local import LocalStore
from ourvidz.workflows.run import FenceLost, LeasedRun
from tests.factories import image_job


class SwitchableLedger(Ledger):
    """A ledger whose `step` and `renew` fail while `away` is set."""

    away = False

    def step(self, *args: Any, **kwargs: Any) -> Verdict:
        if self.away:
            raise WorkerUnavailable("the job store cannot be reached")
        return super().step(*args, **kwargs)

    def renew(self, *args: Any, **kwargs: Any) -> bool:
        if self.away:
            raise WorkerUnavailable("the job store cannot be reached")
        return super().renew(*args, **kwargs)


class FailingStore(LocalStore):
    """A store whose first `failures` puts fail."""

    failures = 0

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageError("the disk is full")
        super().put(key, data, content_type=content_type)


@pytest.fixture(autouse=True)
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests are about what a report says, and not about how often there is one."""
    monkeypatch.setattr("ourvidz.workflows.run.REPORT_INTERVAL_S", 0.0)


@pytest.fixture
def ledger(make_ledger: Callable[..., Any]) -> SwitchableLedger:
    return make_ledger(SwitchableLedger)  # type: ignore[no-any-return]


@pytest.fixture
def claim(ledger: SwitchableLedger) -> Claim:
    ledger.register(image_job("a", user_id="u", steps=4), priority=6)
    claim = ledger.claim("a", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    return claim


@contextmanager
def running(ledger: SwitchableLedger, claim: Claim, **changes: Any) -> Iterator[LeasedRun]:
    with LeasedRun(claim, ledger, **({"lease_s": 10.0, "limit_s": 100.0} | changes)) as run:
        yield run


def stored(*keys: str) -> Outcome:
    """An outcome with images under these keys."""
    return Outcome(status="completed", assets=tuple(Asset(type="image", key=key) for key in keys))


def test_steps_are_reported_as_progress_below_100_percent(ledger: SwitchableLedger, claim: Claim) -> None:
    """Progress is 100 % only after the commit."""
    with running(ledger, claim) as run:
        run.step(2, 4)
        assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]
        run.step(4, 4)
    assert ledger.get("a").progress == pytest.approx(99)  # type: ignore[union-attr]


def test_a_cancelled_run_stops_at_its_next_step(ledger: SwitchableLedger, claim: Claim) -> None:
    """The GPU is free for the next job at once."""
    with running(ledger, claim) as run:
        run.step(1, 4)
        ledger.request_cancel("a")
        with pytest.raises(Cancelled):
            run.step(2, 4)


def test_a_wait_for_the_gpu_is_a_stage_that_ends_with_the_next_step(
    ledger: SwitchableLedger, claim: Claim
) -> None:
    """Followers see why nothing moves, and the time limit begins with the first step after it."""
    now = [0.0]
    with running(ledger, claim, limit_s=10.0, clock=lambda: now[0]) as run:
        run.wait_for_device()
        assert ledger.get("a").stage == "waiting_for_gpu"  # type: ignore[union-attr]
        now[0] = 60.0
        run.wait_for_device()
        run.step(0, 4)
        run.step(1, 4)
        record = ledger.get("a")
        assert record is not None
        assert (record.stage, record.progress) == (None, pytest.approx(24.75))
    stages = [item.data["stage"] for item in ledger.stream("a") if "stage" in item.data]
    assert "waiting_for_gpu" in stages
    assert stages[-1] is None


def test_the_end_of_a_wait_is_reported_before_the_next_step(ledger: SwitchableLedger, claim: Claim) -> None:
    """What follows may have no steps, such as the decoding of a clip: a worker that is stopped then must not
    return the job as one that waits. The wait itself does not count towards the time limit."""
    now = [0.0]
    with running(ledger, claim, limit_s=10.0, clock=lambda: now[0]) as run:
        run.step(0, 4)
        now[0] = 4.0
        run.wait_for_device()
        assert ledger.get("a").stage == "waiting_for_gpu"  # type: ignore[union-attr]
        now[0] = 60.0
        run.end_wait()
        assert ledger.get("a").stage is None  # type: ignore[union-attr]
        now[0] = 65.9
        run.step(1, 4)
        now[0] = 66.1
        with pytest.raises(JobTimeout):
            run.step(2, 4)


@pytest.mark.parametrize(
    ("pause", "stage"),
    [(LeasedRun.note_preempted, "preempted"), (LeasedRun.wait_for_device, "waiting_for_gpu")],
)
def test_a_pause_in_the_middle_does_not_count_towards_the_time_limit(
    ledger: SwitchableLedger, claim: Claim, pause: Callable[[LeasedRun], None], stage: str
) -> None:
    """Another job ran meanwhile. The rest of the limit is as long as before."""
    now = [0.0]
    with running(ledger, claim, limit_s=10.0, clock=lambda: now[0]) as run:
        run.step(0, 4)
        now[0] = 4.0
        pause(run)
        assert ledger.get("a").stage == stage  # type: ignore[union-attr]
        now[0] = 60.0
        pause(run)
        now[0] = 100.0
        run.step(1, 4)
        assert ledger.get("a").stage is None  # type: ignore[union-attr]
        now[0] = 105.9
        run.step(2, 4)
        now[0] = 106.1
        with pytest.raises(JobTimeout):
            run.step(3, 4)


def test_a_job_that_waits_for_the_gpu_can_be_cancelled(ledger: SwitchableLedger, claim: Claim) -> None:
    """The wait ends with the next report."""
    with running(ledger, claim) as run:
        run.wait_for_device()
        ledger.request_cancel("a")
        with pytest.raises(Cancelled):
            run.wait_for_device()


class TestShortSteps:
    """Steps that follow each other faster than four a second."""

    @pytest.fixture(autouse=True)
    def reports(self, every_step_reports: None, ledger: SwitchableLedger,
                monkeypatch: pytest.MonkeyPatch) -> list[float | None]:  # fmt: skip
        """The progress of every report, with the real interval between them."""
        monkeypatch.setattr("ourvidz.workflows.run.REPORT_INTERVAL_S", 0.25)
        reports: list[float | None] = []
        original = ledger.step

        def step(claim: Claim, *, progress: float | None = None, **options: Any) -> Verdict:
            reports.append(progress)
            return original(claim, progress=progress, **options)

        monkeypatch.setattr(ledger, "step", step)
        return reports

    def test_report_four_times_a_second(
        self, ledger: SwitchableLedger, claim: Claim, reports: list[float | None]
    ) -> None:
        """A report costs the ledger as much as a claim, and tiny models take a hundred steps a second."""
        now = [0.0]
        with running(ledger, claim, clock=lambda: now[0]) as run:
            for done in range(101):
                now[0] = done * 0.01
                run.step(done, 100)
        assert reports == pytest.approx([24.75, 49.5, 74.25, 99.0])

    def test_leave_their_progress_to_the_next_report(
        self, ledger: SwitchableLedger, claim: Claim, reports: list[float | None], tmp_path: Path
    ) -> None:
        """A write makes one when it is due. Right before the commit, 100 % follows at once."""
        now = [0.0]
        with running(ledger, claim, clock=lambda: now[0]) as run:
            run.step(1, 2)
            run.step(2, 2)
            run.put(LocalStore(tmp_path), "workspace-temp/u/a/0.png", b"x", "image/png")
            assert reports == []
            now[0] = 0.25
            run.put(LocalStore(tmp_path), "workspace-temp/u/a/0.thumb.webp", b"x", "image/png")
            assert reports == [99.0]
            run.publish(stored("workspace-temp/u/a/0.png", "workspace-temp/u/a/0.thumb.webp"))
            assert run.emptied_folders() == [f"workspace-temp/u/a/.attempts/{claim.fence}.t"]
        assert reports == [99.0, None]

    def test_write_nothing_between_claim_and_commit(
        self, ledger: SwitchableLedger, claim: Claim, reports: list[float | None], tmp_path: Path
    ) -> None:
        """Every write of the server is a synchronisation of its disk, for which all its clients wait. What is
        asked before the files are published, whether the job was cancelled, is read only."""
        writes = ledger._connection.client.info("persistence")["rdb_changes_since_last_save"]
        with running(ledger, claim, clock=lambda: 0.0) as run:
            run.step(0, 1)
            run.step(1, 1)
            run.put(LocalStore(tmp_path), "workspace-temp/u/a/0.png", b"x", "image/png")
            run.publish(stored("workspace-temp/u/a/0.png"))
            assert reports == [None]
            assert ledger._connection.client.info("persistence")["rdb_changes_since_last_save"] == writes
            ledger.request_cancel("a")
            with pytest.raises(Cancelled):
                run.publish(stored("workspace-temp/u/a/0.png"))

    def test_tell_of_their_progress_while_their_files_are_published(
        self, ledger: SwitchableLedger, claim: Claim, reports: list[float | None], tmp_path: Path
    ) -> None:
        """Where a move takes long, followers see that the steps have ended."""
        now, keys = [0.0], [f"workspace-temp/u/a/{number}.png" for number in range(2)]

        class SlowStore(LocalStore):
            def move(self, source: str, key: str) -> None:
                super().move(source, key)
                now[0] = 0.25

        with running(ledger, claim, clock=lambda: now[0]) as run:
            run.step(1, 1)
            for key in keys:
                run.put(SlowStore(tmp_path), key, b"x", "image/png")
            run.publish(stored(keys[0]))
            run.publish(stored(keys[1]))
        assert reports == [None, 99.0]

    def test_hear_of_a_cancellation_within_the_interval(self, ledger: SwitchableLedger, claim: Claim) -> None:
        """The step that reports stops."""
        now = [0.0]
        with running(ledger, claim, clock=lambda: now[0]) as run:
            ledger.request_cancel("a")
            now[0] = 0.2
            run.step(1, 4)
            now[0] = 0.25
            with pytest.raises(Cancelled):
                run.step(2, 4)

    def test_notice_their_deadline_and_a_lost_lease_without_a_report(
        self, ledger: SwitchableLedger, claim: Claim, reports: list[float | None]
    ) -> None:
        """Both are known here."""
        now = [0.0]
        with running(ledger, claim, limit_s=0.1, clock=lambda: now[0]) as run:
            run.step(0, 4)
            now[0] = 0.2
            with pytest.raises(JobTimeout):
                run.step(1, 4)
            run._fence_lost.set()
            with pytest.raises(FenceLost):
                run.step(2, 4)
        assert reports == []

    def test_send_a_preview_that_is_ready(
        self, ledger: SwitchableLedger, claim: Claim, reports: list[float | None]
    ) -> None:
        """It is at most twice a second, and carries the progress."""
        with running(ledger, claim, previews=True, clock=lambda: 0.0) as run:
            run.step(1, 4)
            offer(run, green)
            run.step(2, 4)
            run.step(3, 4)
        assert reports == [49.5]
        assert len(previews(ledger)) == 1


def test_a_lost_fence_stops_the_run_and_its_puts(
    ledger: SwitchableLedger, claim: Claim, tmp_path: Path
) -> None:
    """A worker whose lease expired does not overwrite the files of the next attempt."""
    store = LocalStore(tmp_path)
    with running(ledger, claim) as run:
        ledger.rescue(claim)
        with pytest.raises(FenceLost):
            run.step(1, 4)
        with pytest.raises(FenceLost):
            run.put(store, "workspace-temp/u/a/0.png", b"late", "image/png")
    assert not store.exists("workspace-temp/u/a/0.png")


def test_an_ended_run_is_freed_without_the_garbage_collector(
    ledger: SwitchableLedger, claim: Claim, tmp_path: Path
) -> None:
    """A run of minutes is old when it ends: it would wait for a full collection, with its job and the
    reference image in it."""
    gc.disable()
    try:
        with running(ledger, claim) as run:
            run.put(LocalStore(tmp_path), "workspace-temp/u/a/0.png", b"x", "image/png")
            run.publish(stored("workspace-temp/u/a/0.png"))
        ended = weakref.ref(run)
        del run
        for thread in threading.enumerate():
            if thread.name == "lease-a":
                thread.join()
        assert ended() is None
    finally:
        gc.enable()


def test_the_time_limit_counts_from_the_first_step(ledger: SwitchableLedger, claim: Claim) -> None:
    """Loading a model may take minutes and does not count."""
    now = [0.0]
    with running(ledger, claim, limit_s=120.0, clock=lambda: now[0]) as run:
        now[0] = 1000.0
        run.step(0, 4)
        now[0] = 1119.0
        run.step(1, 4)
        now[0] = 1121.0
        with pytest.raises(JobTimeout, match="120 seconds"):
            run.step(2, 4)


def test_time_that_another_job_took_does_not_count(ledger: SwitchableLedger, claim: Claim) -> None:
    """Texts are decoded together, and one may hold the others up."""
    now = [0.0]
    with running(ledger, claim, limit_s=120.0, clock=lambda: now[0]) as run:
        run.exclude(60.0)
        run.step(0, 4)
        run.exclude(60.0)
        now[0] = 179.0
        run.step(1, 4)
        now[0] = 181.0
        with pytest.raises(JobTimeout):
            run.step(2, 4)


def test_an_unreachable_ledger_does_not_stop_the_run(ledger: SwitchableLedger, claim: Claim) -> None:
    """A restart of Redis does not abort generations."""
    with running(ledger, claim) as run:
        ledger.away = True
        run.step(1, 4)
        ledger.away = False
        run.step(2, 4)
    assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]


def test_the_lease_is_renewed_while_a_step_takes_long(ledger: SwitchableLedger, claim: Claim) -> None:
    """A step may take longer than a lease."""
    renewed = threading.Event()
    original = ledger.renew

    def renew(claim: Claim, *, lease_s: float) -> bool:
        renewed_lease = original(claim, lease_s=lease_s)
        renewed.set()
        return renewed_lease

    ledger.renew = renew  # type: ignore[method-assign]
    with running(ledger, claim, lease_s=0.15):
        assert renewed.wait(5)


def test_the_lease_deadline_is_measured_by_the_monotonic_clock(ledger: SwitchableLedger) -> None:
    """A disconnected worker stops writing before its lease expires on the server."""
    ledger.register(image_job("a", user_id="u", steps=4), priority=6)
    before = time.monotonic()
    claim = ledger.claim("a", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    assert claim.token == "t"
    assert before + 10 <= claim.lease_deadline <= time.monotonic() + 10
    renewed = threading.Event()
    original = ledger.renew

    def renew(claim: Claim, *, lease_s: float) -> bool:
        if renewed.is_set():
            raise WorkerUnavailable("the job store cannot be reached")
        renewed.set()
        return original(claim, lease_s=lease_s)

    ledger.renew = renew  # type: ignore[method-assign]
    now = [500.0]
    with running(ledger, claim, lease_s=0.15, clock=lambda: now[0]) as run:
        assert run.lease_deadline == claim.lease_deadline
        assert run.token == "t"
        assert renewed.wait(5)
        now[0] = 700.0
    run._renewer.join(5)
    assert run.lease_deadline == pytest.approx(500.15)


def test_a_put_is_tried_three_times(ledger: SwitchableLedger, claim: Claim, tmp_path: Path) -> None:
    """A short storage failure does not discard generated images."""
    store = FailingStore(tmp_path)
    store.failures = 2
    pauses: list[float] = []
    with running(ledger, claim, sleep=pauses.append) as run:
        run.put(store, "workspace-temp/u/a/0.png", b"x", "image/png")
        run.publish(stored("workspace-temp/u/a/0.png"))
    assert store.get("workspace-temp/u/a/0.png") == b"x"
    assert pauses == [0.5, 2.0]


def test_a_put_that_keeps_failing_is_a_storage_error(
    ledger: SwitchableLedger, claim: Claim, tmp_path: Path
) -> None:
    """A full disk fails the job, with its code."""
    store = FailingStore(tmp_path)
    store.failures = 9
    with running(ledger, claim, sleep=lambda _: None) as run, pytest.raises(StorageError):
        run.put(store, "workspace-temp/u/a/0.png", b"x", "image/png")
    assert store.failures == 6


def test_progress_callbacks_come_at_most_once_a_second(ledger: SwitchableLedger, claim: Claim) -> None:
    """The receiver must not be flooded."""
    now, recorded = [0.0], []
    with running(ledger, claim, progress_events=True, clock=lambda: now[0]) as run:
        for done in range(9):
            now[0] = done * 0.4
            run.step(done, 8)
            recorded += [row.sequence for row in ledger.list_events("pending") if row.metadata]
    assert len(set(recorded)) == 2
    rows = [event for event in ledger.list_events("pending") if event.metadata]
    assert [(row.kind, row.metadata["progress"]) for row in rows] == [("processing", pytest.approx(74.25))]


def test_without_progress_callbacks_no_event_is_recorded(ledger: SwitchableLedger, claim: Claim) -> None:
    """They are off by default."""
    now = [0.0]
    with running(ledger, claim, clock=lambda: now[0]) as run:
        for done in range(9):
            now[0] = done * 5.0
            run.step(done, 8)
    assert not [event for event in ledger.list_events("pending") if event.metadata]


def test_a_lost_lease_stops_the_run_while_the_ledger_is_unreachable(
    ledger: SwitchableLedger, claim: Claim
) -> None:
    """The renewing thread has recorded the loss, so steps stop without a reply of the ledger."""
    lost = threading.Event()
    original = ledger.renew

    def renew(claim: Claim, *, lease_s: float) -> bool:
        renewed_lease = original(claim, lease_s=lease_s)
        if not renewed_lease:
            lost.set()
        return renewed_lease

    ledger.renew = renew  # type: ignore[method-assign]
    with running(ledger, claim, lease_s=0.15) as run:
        ledger.rescue(claim)
        assert lost.wait(5)
        ledger.away = True
        run._renewer.join(5)
        with pytest.raises(FenceLost):
            run.step(1, 4)


def previews(ledger: SwitchableLedger) -> list[dict[str, Any]]:
    return [item.data for item in ledger.stream("a") if item.kind == "preview"]


def offer(run: LeasedRun, renderer: PreviewRenderer) -> None:
    """Offer a snapshot and wait until its preview is rendered or has failed."""
    run.preview(lambda: renderer)
    assert run._previews is not None
    if run._previews._rendering is not None:
        wait([run._previews._rendering], timeout=10)


def green() -> Image.Image:
    return Image.new("RGB", (128, 64), "green")


def test_a_preview_is_sent_with_the_next_step(ledger: SwitchableLedger, claim: Claim) -> None:
    """Followers see the image develop, without extra round trips to the ledger."""
    with running(ledger, claim, previews=True) as run:
        offer(run, green)
        assert previews(ledger) == []
        run.step(1, 4)
        run.step(2, 4)
    [sent] = previews(ledger)
    with Image.open(io.BytesIO(base64.b64decode(sent["webp"]))) as small:
        assert (small.format, small.size) == ("WEBP", (sent["width"], sent["height"]))


def test_a_preview_that_is_being_rendered_delays_neither_steps_nor_the_end(
    ledger: SwitchableLedger, claim: Claim
) -> None:
    """The preview is dropped if it is not ready at the end."""
    begun, release = threading.Event(), threading.Event()

    def render() -> Image.Image:
        begun.set()
        release.wait(10)
        return green()

    with running(ledger, claim, previews=True) as run:
        run.preview(lambda: render)
        assert begun.wait(10)
        run.step(1, 4)
        run.step(2, 4)
    assert not release.is_set()
    release.set()
    assert previews(ledger) == []
    assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]


def test_previews_can_be_switched_off(ledger: SwitchableLedger, claim: Claim) -> None:
    """Then no snapshot is taken either."""
    with running(ledger, claim) as run:
        run.preview(lambda: pytest.fail("a snapshot was taken"))
        run.step(1, 4)
    assert previews(ledger) == []


def test_a_preview_that_fails_does_not_fail_the_job(ledger: SwitchableLedger, claim: Claim) -> None:
    """Progress is reported as usual."""

    def fail() -> Image.Image:
        raise RuntimeError("no colours")

    with running(ledger, claim, previews=True) as run:
        offer(run, fail)
        run.step(2, 4)
    assert previews(ledger) == []
    assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]
