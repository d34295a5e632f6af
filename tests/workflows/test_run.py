"""The running attempt hears the cancel flag, keeps its deadline, and stops when its fence is lost."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.errors import Cancelled, JobTimeout, StorageError, WorkerUnavailable
from ourvidz.jobs.job import ImageJob
from ourvidz.ledger.record import Claim, Verdict
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import PreviewRenderer
from ourvidz.storage.local import LocalStore
from ourvidz.workflows.run import FenceLost, LeasedRun


class Away(Ledger):
    """A ledger whose server can be switched off."""

    away = False

    def step(self, *args: Any, **kwargs: Any) -> Verdict:
        if self.away:
            raise WorkerUnavailable("the job store cannot be reached")
        return super().step(*args, **kwargs)


class Failing(LocalStore):
    """A store whose first puts fail."""

    failures = 0

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageError("the disk is full")
        super().put(key, data, content_type=content_type)


@pytest.fixture
def ledger(make_ledger: Callable[..., Any]) -> Away:
    return make_ledger(Away)  # type: ignore[no-any-return]


@pytest.fixture
def claim(ledger: Away) -> Claim:
    job = ImageJob(
        id="a",
        type="sdxl_image_fast",
        user_id="u",
        prompt="a lake",
        steps=4,
        guidance_scale=6,
        width=64,
        height=64,
        seed=1,
        expected_time=30,
    )
    ledger.register(job, priority=6)
    claim = ledger.claim("a", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    return claim


@contextmanager
def running(ledger: Away, claim: Claim, **changed: Any) -> Iterator[LeasedRun]:
    with LeasedRun(claim, ledger, **({"lease_s": 10.0, "limit_s": 100.0} | changed)) as run:
        yield run


def test_steps_become_progress_and_leave_the_rest_for_storing(ledger: Away, claim: Claim) -> None:
    """100 percent is the commit's to say."""
    with running(ledger, claim) as run:
        run.step(2, 4)
        assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]
        run.step(4, 4)
    assert ledger.get("a").progress == pytest.approx(99)  # type: ignore[union-attr]


def test_a_cancelled_run_stops_at_its_next_step(ledger: Away, claim: Claim) -> None:
    """The GPU belongs to the next job the moment the caller says so."""
    with running(ledger, claim) as run:
        run.step(1, 4)
        ledger.request_cancel("a")
        with pytest.raises(Cancelled):
            run.step(2, 4)


def test_a_lost_fence_stops_the_run_and_its_puts(ledger: Away, claim: Claim, tmp_path: Path) -> None:
    """A frozen worker that wakes up must not write over its successor's work."""
    store = LocalStore(tmp_path)
    with running(ledger, claim) as run:
        ledger.rescue("a", fence=claim.fence)
        with pytest.raises(FenceLost):
            run.step(1, 4)
        with pytest.raises(FenceLost):
            run.put(store, "workspace-temp/u/a/0.png", b"late", "image/png")
    assert not store.exists("workspace-temp/u/a/0.png")


def test_the_deadline_counts_from_the_first_step(ledger: Away, claim: Claim) -> None:
    """Loading a model for minutes is not the job's fault."""
    now = [0.0]
    with running(ledger, claim, limit_s=120.0, clock=lambda: now[0]) as run:
        now[0] = 1000.0
        run.step(0, 4)
        now[0] = 1119.0
        run.step(1, 4)
        now[0] = 1121.0
        with pytest.raises(JobTimeout, match="120 seconds"):
            run.step(2, 4)


def test_a_ledger_that_is_away_does_not_stop_the_work(ledger: Away, claim: Claim) -> None:
    """Minutes of GPU time must survive seconds of a restarting server."""
    with running(ledger, claim) as run:
        ledger.away = True
        run.step(1, 4)
        ledger.away = False
        run.step(2, 4)
    assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]


def test_the_lease_is_renewed_while_a_step_takes_long(ledger: Away, claim: Claim) -> None:
    """A step may take longer than a lease."""
    renewed = threading.Event()
    plain = ledger.renew

    def renew(claim: Claim, *, lease_s: float) -> bool:
        kept = plain(claim, lease_s=lease_s)
        renewed.set()
        return kept

    ledger.renew = renew  # type: ignore[method-assign]
    with running(ledger, claim, lease_s=0.15):
        assert renewed.wait(5)


def test_a_put_is_tried_three_times(ledger: Away, claim: Claim, tmp_path: Path) -> None:
    """The pictures are made: a hiccup of the storage must not cost the generation."""
    store = Failing(tmp_path)
    store.failures = 2
    pauses: list[float] = []
    with running(ledger, claim, sleep=pauses.append) as run:
        run.put(store, "workspace-temp/u/a/0.png", b"x", "image/png")
    assert store.get("workspace-temp/u/a/0.png") == b"x"
    assert pauses == [0.5, 2.0]


def test_a_put_that_keeps_failing_is_a_storage_error(ledger: Away, claim: Claim, tmp_path: Path) -> None:
    """An operator must hear of a full disk."""
    store = Failing(tmp_path)
    store.failures = 9
    with running(ledger, claim, sleep=lambda _: None) as run, pytest.raises(StorageError):
        run.put(store, "workspace-temp/u/a/0.png", b"x", "image/png")
    assert store.failures == 6


def test_progress_callbacks_come_at_most_once_a_second(ledger: Away, claim: Claim) -> None:
    """A caller's backend must not drown in what a page shows anyway."""
    now, told = [0.0], []
    with running(ledger, claim, on_told=lambda: told.append(now[0]), clock=lambda: now[0]) as run:
        for done in range(9):
            now[0] = done * 0.4
            run.step(done, 8)
    assert told == pytest.approx([1.2, 2.4])
    rows = [event for event in ledger.list_events("pending") if event.metadata]
    assert [(row.kind, row.metadata["progress"]) for row in rows] == [("processing", pytest.approx(74.25))]


def test_without_progress_callbacks_none_is_written(ledger: Away, claim: Claim) -> None:
    """They are off by default."""
    now = [0.0]
    with running(ledger, claim, clock=lambda: now[0]) as run:
        for done in range(9):
            now[0] = done * 5.0
            run.step(done, 8)
    assert not [event for event in ledger.list_events("pending") if event.metadata]


def test_a_fence_known_to_be_lost_stops_the_run_also_while_the_ledger_is_away(
    ledger: Away, claim: Claim
) -> None:
    """The lease thread has heard it; the step that gets no answer must not go on regardless."""
    heard = threading.Event()
    plain = ledger.renew

    def renew(claim: Claim, *, lease_s: float) -> bool:
        kept = plain(claim, lease_s=lease_s)
        if not kept:
            heard.set()
        return kept

    ledger.renew = renew  # type: ignore[method-assign]
    with running(ledger, claim, lease_s=0.15) as run:
        ledger.rescue("a", fence=claim.fence)
        assert heard.wait(5)
        ledger.away = True
        run._renewer.join(5)
        with pytest.raises(FenceLost):
            run.step(1, 4)


def previews(ledger: Away) -> list[dict[str, Any]]:
    return [item.data for item in ledger.stream("a") if item.kind == "preview"]


def offer(run: LeasedRun, look: PreviewRenderer) -> None:
    """Offer a preview and wait until it is drawn, or has failed."""
    run.preview(lambda: look)
    assert run._previews is not None
    if run._previews._drawing is not None:
        wait([run._previews._drawing], timeout=10)


def green() -> Image.Image:
    return Image.new("RGB", (128, 64), "green")


def test_a_preview_goes_out_with_the_next_step(ledger: Away, claim: Claim) -> None:
    """Followers see the picture grow, at no extra word with the ledger."""
    with running(ledger, claim, previews=True) as run:
        offer(run, green)
        assert previews(ledger) == []
        run.step(1, 4)
        run.step(2, 4)
    [sent] = previews(ledger)
    with Image.open(io.BytesIO(base64.b64decode(sent["webp"]))) as small:
        assert (small.format, small.size) == ("WEBP", (sent["width"], sent["height"]))


def test_a_preview_that_is_being_drawn_holds_up_neither_steps_nor_the_end(ledger: Away, claim: Claim) -> None:
    """The worker is free for the next job; the preview of this one is forgotten."""
    begun, release = threading.Event(), threading.Event()

    def look() -> Image.Image:
        begun.set()
        release.wait(10)
        return green()

    with running(ledger, claim, previews=True) as run:
        run.preview(lambda: look)
        assert begun.wait(10)
        run.step(1, 4)
        run.step(2, 4)
    assert not release.is_set()
    release.set()
    assert previews(ledger) == []
    assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]


def test_previews_can_be_switched_off(ledger: Away, claim: Claim) -> None:
    """Then nothing is copied or drawn either."""
    with running(ledger, claim) as run:
        run.preview(lambda: pytest.fail("looked"))
        run.step(1, 4)
    assert previews(ledger) == []


def test_a_preview_that_fails_costs_nothing(ledger: Away, claim: Claim) -> None:
    """It is a courtesy: the job goes on, and so does its progress."""

    def look() -> Image.Image:
        raise RuntimeError("no colours")

    with running(ledger, claim, previews=True) as run:
        offer(run, look)
        run.step(2, 4)
    assert previews(ledger) == []
    assert ledger.get("a").progress == pytest.approx(49.5)  # type: ignore[union-attr]
