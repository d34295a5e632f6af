"""Reading the ledger: pages, queues and event streams."""

from __future__ import annotations

import asyncio

import pytest

from ourvidz.errors import InvalidParameters, OutOfMemory
from ourvidz.jobs.outcome import Outcome

DONE = Outcome(status="completed")
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def run_to(ledger, job_id, outcome, run=1):
    """Claim a job and end it."""
    claim = ledger.claim(job_id, run, worker_id="w", lease_s=10, token=f"{job_id}-{run}")
    assert ledger.end(claim, outcome=outcome)
    return claim


def job_ids(records):
    return [record.job_id for record in records]


def collect(ledger, job_id, after="0", limit_s=10):
    """All items that `follow` yields within `limit_s` seconds."""

    async def read_all():
        return [item async for item in ledger.follow(job_id, after=after)]

    return asyncio.run(asyncio.wait_for(read_all(), limit_s))


class TestPages:
    def test_pages_go_from_the_newest_to_the_oldest_without_gaps(self, ledger, image_job):
        """A client that follows the cursor gets every job once."""
        for n in range(7):
            ledger.register(image_job(f"j{n}"), priority=6)
        seen, cursor = [], None
        while True:
            page = ledger.page(limit=3, cursor=cursor)
            seen += job_ids(page.records)
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == [f"j{n}" for n in reversed(range(7))]

    def test_the_last_page_has_no_cursor(self, ledger, image_job):
        """The cursor is None exactly when there are no further records."""
        for n in range(3):
            ledger.register(image_job(f"j{n}"), priority=6)
        assert ledger.page(limit=3).cursor is None

    def test_a_filter_searches_across_read_batches(self, ledger, image_job):
        """One old failed job is found behind a hundred records that do not match."""
        ledger.register(image_job("needle", user_id="u2", type="sdxl_image_high"), priority=6)
        run_to(ledger, "needle", FAILED)
        for n in range(120):
            ledger.register(image_job(f"hay{n}"), priority=6)
        assert job_ids(ledger.page(status="failed").records) == ["needle"]
        assert job_ids(ledger.page(type="sdxl_image_high").records) == ["needle"]
        assert job_ids(ledger.page(user_id="u2").records) == ["needle"]
        assert ledger.page(user_id="u2", status="queued").records == []
        assert ledger.page(user_id="user-1", limit=200, type="sdxl_image_fast").cursor is None

    def test_a_reopened_job_keeps_its_position_in_the_pages(self, ledger, image_job):
        """A cursor stays valid when a job is reopened."""
        for n in range(3):
            ledger.register(image_job(f"j{n}"), priority=6)
        run_to(ledger, "j0", FAILED)
        cursor = ledger.page(limit=1).cursor
        ledger.reopen("j0", priority=6)
        assert job_ids(ledger.page(cursor=cursor).records) == ["j1", "j0"]

    @pytest.mark.parametrize("wrong", ["", "r", "12", "r-1", "rxyz", "r1 ", "r" + "f" * 20])
    def test_an_invalid_cursor_is_refused(self, ledger, wrong):
        """Guessing a position could skip jobs."""
        with pytest.raises(InvalidParameters) as refused:
            ledger.page(cursor=wrong)
        assert refused.value.field == "cursor"


class TestQueues:
    def test_queues_are_ordered_by_priority_and_then_by_arrival(self, ledger, image_job):
        """Callers are shown this position while the job is queued."""
        for job_id, priority in (("a", 6), ("b", 6), ("c", 0), ("d", 3)):
            ledger.register(image_job(job_id), priority=priority)
        assert [ledger.queue_position(each) for each in "cdab"] == [0, 1, 2, 3]
        assert job_ids(ledger.queued("sdxl_queue")) == ["c", "d", "a", "b"]
        assert job_ids(ledger.queued("sdxl_queue", limit=2)) == ["c", "d"]
        assert (ledger.queue_depth("sdxl_queue"), ledger.queue_depth("wan_queue")) == (4, 0)
        assert ledger.queue_position("nobody") is None

    def test_the_priority_of_a_job_is_raised_once_and_its_arrival_kept(self, ledger, image_job):
        """A second call for the same run is refused."""
        first = ledger.register(image_job("a"), priority=6).record
        ledger.register(image_job("b"), priority=3)
        assert ledger.raise_priority("a", run=1, priority=3)
        assert ledger.queue_position("a") == 0
        assert (ledger.get("a").priority, ledger.get("a").order) == (3, first.order)
        assert not ledger.raise_priority("a", run=1, priority=0)
        assert not ledger.raise_priority("b", run=2, priority=0)
        assert not ledger.raise_priority("b", run=1, priority=3)
        run_to(ledger, "b", FAILED)
        assert not ledger.raise_priority("b", run=1, priority=0)

    def test_the_last_claimed_queue_order_is_recorded(self, ledger, clock, image_job):
        """The sweep uses it to find jobs that later ones overtook, whose message is probably lost."""
        assert (ledger.last_claimed_order("sdxl_queue", 6), ledger.last_claimed_at("sdxl_queue", 6)) == (0, 0)
        orders = [ledger.register(image_job(f"j{n}"), priority=6).record.order for n in range(3)]
        run_to(ledger, "j2", DONE)
        clock.advance(5)
        run_to(ledger, "j0", DONE)
        assert ledger.last_claimed_order("sdxl_queue", 6) == orders[2]
        assert ledger.last_claimed_at("sdxl_queue", 6) == clock.time
        assert ledger.last_claimed_order("sdxl_queue", 3) == 0

    def test_a_queue_is_empty_since_the_first_empty_observation(self, ledger, clock):
        """An observation with messages resets the time."""
        start = clock.time
        assert ledger.broker_empty_since("q", True) == start
        clock.advance(5)
        assert ledger.broker_empty_since("q", True) == start
        assert ledger.broker_empty_since("q", False) is None
        assert ledger.broker_empty_since("q", True) == start + 5


class TestMaintenance:
    def test_expired_leases_are_listed_after_a_gap_only_when_workers_had_time_to_renew(
        self, ledger, clock, image_job
    ):
        """Nobody could renew while the server was unreachable, so expired leases prove nothing."""
        for n in range(3):
            ledger.register(image_job(f"j{n}"), priority=6)
        for n in range(2):
            ledger.claim(f"j{n}", 1, worker_id="w", lease_s=10, token="t")
        ledger.record_sweep(silence_s=5, lease_s=12)
        for seconds in (30, 4, 4, 3):
            clock.advance(seconds)
            assert ledger.expired() == []
        clock.advance(1)
        assert job_ids(ledger.expired()) == ["j0", "j1"]
        assert job_ids(ledger.expired(limit=1)) == ["j0"]

    def test_old_jobs_are_purged_after_their_terminal_callback_is_settled(self, ledger, clock, image_job):
        """A job with an undelivered terminal callback is kept beyond the retention period."""
        for job_id in ("delivered", "undelivered", "young", "open"):
            ledger.register(image_job(job_id), priority=6)
        for job_id in ("delivered", "undelivered"):
            run_to(ledger, job_id, DONE)
        while event := ledger.lease_event("delivered", lease_s=30, token="d"):
            ledger.mark_delivered(event, status=200)
        clock.advance(100)
        run_to(ledger, "young", DONE)
        while event := ledger.lease_event("young", lease_s=30, token="d"):
            ledger.mark_delivered(event, status=200)
        assert ledger.purge(older_than_s=50) == 1
        assert [ledger.get(each) is None for each in ("delivered", "undelivered", "young", "open")] == [
            True
        ] + [False] * 3
        while event := ledger.lease_event("undelivered", lease_s=30, token="d"):
            ledger.dead_letter(event, status=410, error="gone")
        assert ledger.purge(older_than_s=0, limit=1) == 1
        assert ledger.purge(older_than_s=0, limit=1) == 1
        assert job_ids(ledger.page().records) == ["open"]
        assert ledger.list_events("dead") == []


class TestStreams:
    def test_the_stream_lists_the_events_of_a_job_in_order(self, ledger, image_job):
        """A client that connects late gets the whole history of the job."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
        ledger.step(claim, progress=50, stage="denoising")
        ledger.step(claim, progress=50)
        ledger.step(claim, progress=60, items=[("token", {"text": "ü"}), ("progress", {"step": 3})])
        ledger.end(ledger.get("job-1"), outcome=FAILED)
        assert [(item.kind, item.data) for item in ledger.stream("job-1")] == [
            ("state", {"status": "queued", "run": 1, "attempt": 0, "stage": None}),
            ("state", {"status": "processing", "run": 1, "attempt": 1, "stage": None}),
            ("progress", {"progress": 50.0, "stage": "denoising"}),
            ("token", {"text": "ü"}),
            ("progress", {"progress": 60.0, "stage": "denoising", "step": 3}),
            (
                "done",
                {
                    "status": "failed",
                    "run": 1,
                    "error": {
                        "code": "OOM_ERROR",
                        "message": "there was not enough memory",
                        "retryable": True,
                    },
                },
            ),
        ]

    def test_a_reader_resumes_after_the_last_item_it_received(self, ledger, image_job):
        """Resuming with `Last-Event-ID` repeats and skips nothing."""
        ledger.register(image_job(), priority=6)
        run_to(ledger, "job-1", DONE)
        items = ledger.stream("job-1")
        assert ledger.stream("job-1", after=items[0].id) == items[1:]
        assert ledger.stream("job-1", limit=2) == items[:2]
        assert ledger.stream("job-1", after=items[-1].id) == []
        with pytest.raises(InvalidParameters):
            ledger.stream("job-1", after="yesterday")

    def test_only_the_latest_preview_is_kept(self, ledger, image_job):
        """Previews are large, and a newer one replaces the older."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
        for n in range(5):
            ledger.step(claim, items=[("preview", {"n": n})])
        previews = [item.data for item in ledger.stream("job-1") if item.kind == "preview"]
        assert previews == [{"n": 4}]

    def test_a_stream_is_bounded(self, ledger, image_job):
        """A long text does not use unlimited memory: the oldest items are trimmed."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
        ledger.step(claim, items=[("token", {"n": n}) for n in range(1500)])
        items = ledger.stream("job-1", limit=5000)
        assert len(items) <= 700
        assert items[-1].data == {"n": 1499}

    def test_a_follower_gets_all_items_and_stops_when_the_job_ends(self, ledger, image_job):
        """`follow` returns after the `done` item."""
        ledger.register(image_job(), priority=6)

        async def follow_while_running():
            items = []
            following = ledger.follow("job-1")
            items.append(await anext(following))
            claim = await asyncio.to_thread(ledger.claim, "job-1", 1, worker_id="w", lease_s=10, token="t")
            items.append(await anext(following))
            await asyncio.to_thread(ledger.step, claim, progress=10)
            await asyncio.to_thread(ledger.end, ledger.get("job-1"), outcome=DONE)
            items += [item async for item in following]
            return items

        items = asyncio.run(asyncio.wait_for(follow_while_running(), 10))
        assert [item.kind for item in items] == ["state", "state", "progress", "done"]
        assert items == ledger.stream("job-1")

    def test_a_follower_of_an_ended_job_gets_the_remaining_items(self, ledger, image_job):
        """`follow` returns at once instead of waiting for further items."""
        ledger.register(image_job(), priority=6)
        run_to(ledger, "job-1", DONE)
        items = ledger.stream("job-1")
        assert collect(ledger, "job-1", after=items[1].id) == items[2:]
        assert collect(ledger, "job-1", after=items[-1].id) == []
        assert collect(ledger, "nobody") == []

    def test_the_end_of_an_earlier_run_does_not_stop_a_follower(self, ledger, image_job):
        """A follower of a reopened job gets the items of the next run."""
        ledger.register(image_job(), priority=6)
        run_to(ledger, "job-1", FAILED)
        ledger.reopen("job-1", priority=6)
        run_to(ledger, "job-1", DONE, run=2)
        items = collect(ledger, "job-1")
        assert [item.data["run"] for item in items if item.kind == "done"] == [1, 2]

    def test_several_followers_share_an_event_loop(self, ledger, image_job):
        """Closing one follower does not close the connection of the others."""
        ledger.register(image_job(), priority=6)

        async def follow_while_running():
            async def read_all_items():
                return [item async for item in ledger.follow("job-1")]

            others = [asyncio.create_task(read_all_items()) for _ in range(3)]
            closed_early = ledger.follow("job-1")
            await anext(closed_early)
            await closed_early.aclose()
            await asyncio.to_thread(run_to, ledger, "job-1", DONE)
            return await asyncio.gather(*others)

        streams = asyncio.run(asyncio.wait_for(follow_while_running(), 10))
        assert all(each == ledger.stream("job-1") for each in streams)
