"""Reading the ledger: pages and queues."""

from __future__ import annotations

import pytest

from ourvidz.errors import InvalidParameters, OutOfMemory
from ourvidz.jobs.job import load_job
from ourvidz.jobs.outcome import Outcome
from tests.monitor import monitored

DONE = Outcome(status="completed")
CANCELLED = Outcome(status="cancelled")
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def run_to(ledger, job_id, outcome, run=1):
    """Claim a job and end it."""
    claim = ledger.claim(job_id, run, worker_id="w", lease_s=10, token=f"{job_id}-{run}")
    assert ledger.end(claim, outcome=outcome)
    return claim


def job_ids(records):
    return [record.job_id for record in records]


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

    def test_a_filter_that_selects_nothing_reads_no_record(self, ledger, image_job):
        """The server compares type and status; a page of 20,000 jobs took a tenth of a second."""
        for n in range(510):
            ledger.register(image_job(f"j{n}"), priority=6)
        with monitored(ledger.url) as seen:
            page = ledger.page(status="failed")
        assert (page.records, page.cursor) == ([], None)
        assert [command for command in seen.commands if command != "SCRIPT LOAD"] in (["page"], ["page"] * 2)

    def test_a_page_ends_where_too_many_jobs_were_looked_at(self, ledger, image_job, monkeypatch):
        """Its cursor goes on from there, also when it is empty."""
        monkeypatch.setattr("ourvidz.ledger.queries.SCAN_BATCH", 2)
        monkeypatch.setattr("ourvidz.ledger.queries.SCAN_LIMIT", 4)
        ledger.register(image_job("needle", type="sdxl_image_high"), priority=6)
        for n in range(5):
            ledger.register(image_job(f"hay{n}"), priority=6)
        first = ledger.page(type="sdxl_image_high")
        assert first.records == []
        second = ledger.page(type="sdxl_image_high", cursor=first.cursor)
        assert (job_ids(second.records), second.cursor) == (["needle"], None)

    def test_a_page_ends_in_the_middle_of_what_was_found(self, ledger, image_job, monkeypatch):
        """The next one begins right after it."""
        monkeypatch.setattr("ourvidz.ledger.queries.BATCH", 3)
        for n in range(8):
            ledger.register(image_job(f"j{n}"), priority=6)
        page = ledger.page(status="queued", limit=4)
        assert job_ids(page.records) == ["j7", "j6", "j5", "j4"]
        assert job_ids(ledger.page(status="queued", cursor=page.cursor).records) == ["j3", "j2", "j1", "j0"]

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
        before = ledger.last_claims("sdxl_queue")
        assert (before.order(6), before.at(6)) == (0, 0)
        orders = [ledger.register(image_job(f"j{n}"), priority=6).record.order for n in range(3)]
        run_to(ledger, "j2", DONE)
        clock.advance(5)
        run_to(ledger, "j0", DONE)
        claims = ledger.last_claims("sdxl_queue")
        assert (claims.order(6), claims.at(6)) == (orders[2], clock.time)
        assert claims.order(3) == 0

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


class TestPagesOfAStatus:
    """Few jobs among many have the status: they are found without looking at the others."""

    @pytest.fixture(autouse=True)
    def few_are_looked_at(self, monkeypatch):
        """Pages that had to look at all jobs would be empty."""
        monkeypatch.setattr("ourvidz.ledger.queries.SCAN_BATCH", 4)
        monkeypatch.setattr("ourvidz.ledger.queries.SCAN_LIMIT", 4)

    @pytest.fixture
    def many(self, ledger, image_job):
        """Registers jobs, and ends each with an outcome."""

        def end(outcome, *names, **changes):
            for name in names:
                ledger.register(image_job(name, **changes), priority=6)
                run_to(ledger, name, outcome)

        return end

    def test_few_that_run_or_have_ended_among_many_queued(self, ledger, image_job, many):
        """As in a long queue, in which operators look for what has failed."""
        for name in ("failed", "done"):
            many(FAILED if name == "failed" else DONE, name)
        ledger.register(image_job("running"), priority=6)
        ledger.claim("running", 1, worker_id="w", lease_s=10, token="t")
        for n in range(9):
            ledger.register(image_job(f"j{n}"), priority=6)
        for status, names in {"processing": ["running"], "failed": ["failed"], "completed": ["done"]}.items():
            page = ledger.page(status=status)
            assert (job_ids(page.records), page.cursor) == (names, None)
        assert ledger.page(status="cancelled").cursor is None
        assert len(ledger.page(status="queued").records) == 4

    def test_few_queued_among_many_that_have_ended(self, ledger, image_job, many):
        """Newest first, whatever their priority and queue."""
        for name, priority in (("first", 6), ("second", 0), ("third", 6)):
            ledger.register(image_job(name), priority=priority)
        many(DONE, *(f"j{n}" for n in range(9)))
        page = ledger.page(status="queued", limit=2)
        assert job_ids(page.records) == ["third", "second"]
        rest = ledger.page(status="queued", limit=2, cursor=page.cursor)
        assert (job_ids(rest.records), rest.cursor) == (["first"], None)

    def test_few_that_failed_among_many_that_have_ended(self, ledger, many, clock):
        """Also those that fail after the first page was read, and those of one user."""
        many(FAILED, "a", user_id="u")
        many(DONE, *(f"x{n}" for n in range(9)))
        assert job_ids(ledger.page(status="failed").records) == ["a"]
        clock.advance(1)
        many(FAILED, "b"), many(DONE, *(f"y{n}" for n in range(9)))
        many(FAILED, "c", user_id="u"), many(CANCELLED, "d"), many(DONE, *(f"z{n}" for n in range(9)))
        page = ledger.page(status="failed", limit=2)
        assert job_ids(page.records) == ["c", "b"]
        rest = ledger.page(status="failed", limit=2, cursor=page.cursor)
        assert (job_ids(rest.records), rest.cursor) == (["a"], None)
        assert job_ids(ledger.page(status="cancelled").records) == ["d"]
        assert job_ids(ledger.page(status="failed", user_id="u").records) == ["c", "a"]
        assert ledger.page(status="failed", type="sdxl_image_high").records == []

    def test_jobs_that_run_again_or_are_deleted_leave_the_page(self, ledger, many, clock):
        """A job that fails again comes back."""
        many(FAILED, "again", "deleted", "stays")
        many(DONE, *(f"x{n}" for n in range(9)))
        assert job_ids(ledger.page(status="failed").records) == ["stays", "deleted", "again"]
        ledger.reopen("again", priority=6)
        ledger.begin_deletion("deleted", force=True)
        ledger.delete("deleted")
        assert job_ids(ledger.page(status="failed").records) == ["stays"]
        clock.advance(1)
        run_to(ledger, "again", FAILED, run=2)
        assert job_ids(ledger.page(status="failed").records) == ["stays", "again"]

    @pytest.mark.parametrize("damage", ["ended:failed", "ended:until"])
    def test_what_is_damaged_is_built_again(self, ledger, many, damage):
        """No page fails, and the next one is complete."""
        many(FAILED, "a")
        many(DONE, *(f"x{n}" for n in range(9)))
        assert job_ids(ledger.page(status="failed").records) == ["a"]
        ledger._connection.client.set(f"{ledger._keys.prefix}{damage}", "damaged")
        ledger.page(status="failed")
        assert job_ids(ledger.page(status="failed").records) == ["a"]

    def test_a_page_takes_over_so_many_ended_jobs_at_most(self, ledger, many, clock):
        """After an upgrade there are thousands: until all of them are taken over, pages look at all jobs."""
        client, finished = ledger._connection.client, f"{ledger._keys.prefix}finished"
        client.zadd(finished, {f"gone{n}": clock.time - 1000 + n for n in range(600)})
        many(FAILED, "a"), many(DONE, *(f"x{n}" for n in range(9)))
        clock.advance(1)
        first, second = ledger.page(status="failed"), ledger.page(status="failed")
        assert (first.records, first.cursor is None) == ([], False)
        assert (job_ids(second.records), second.cursor) == (["a"], None)

    def test_a_job_that_is_put_back_is_found(self, ledger, many, clock):
        """What was set aside by another release ended before what pages have taken over."""
        client, prefix = ledger._connection.client, ledger._keys.prefix
        many(FAILED, "a")
        client.zrem(f"{prefix}finished", "a")
        clock.advance(1)
        many(DONE, *(f"x{n}" for n in range(9)))
        assert ledger.page(status="failed").records == []
        client.zadd(f"{prefix}leases", {"a": 1})
        ledger.reindex("a", "leases")
        assert job_ids(ledger.page(status="failed").records) == ["a"]

    def test_a_server_that_takes_no_writes_has_pages(self, ledger, many, monkeypatch):
        """They look at the jobs one after the other."""
        many(FAILED, "a")
        many(DONE, *(f"x{n}" for n in range(9)))
        client = ledger._connection.client
        client.config_set("min-replicas-to-write", 1)
        try:
            assert ledger.page(status="failed").records == []
            monkeypatch.setattr("ourvidz.ledger.queries.SCAN_LIMIT", 400)
            assert job_ids(ledger.page(status="failed").records) == ["a"]
        finally:
            client.config_set("min-replicas-to-write", 0)


class TestStartable:
    def test_jobs_that_may_start_are_read_with_their_documents(self, ledger, image_job):
        """In one round trip, in the order in which they will start."""
        for name in ("a", "b", "c"):
            ledger.register(image_job(name), priority=6)
        ledger.register(image_job("urgent"), priority=0)
        ledger.startable("sdxl_queue", 1)
        with monitored(ledger.url) as seen:
            found = ledger.startable("sdxl_queue", 3)
        assert [(record.job_id, load_job(document).id) for record, document in found] == [
            (name, name) for name in ("urgent", "a", "b")
        ]
        assert seen.commands == ["startable"]

    def test_jobs_that_may_not_start_hide_no_others(self, ledger, image_job, clock):
        """One waits for its retry, one is to be cancelled, one is damaged, and one has no document."""
        for name in ("retried", "cancelled", "damaged", "bare", "next"):
            ledger.register(image_job(name), priority=6)
        claim = ledger.claim("retried", 1, worker_id="w", lease_s=10, token="t")
        ledger.release(claim, code="OOM_ERROR", due_in_s=5)
        ledger.request_cancel("cancelled")
        client = ledger._connection.client
        client.set(ledger._keys.job("damaged"), "no hash")
        client.delete(ledger._keys.document("bare"))
        client.rpush(ledger._keys.document("bare"), "no document")
        found = ledger.startable("sdxl_queue", 2)
        assert [(record.job_id, bool(document)) for record, document in found] == [
            ("bare", False),
            ("next", True),
        ]
        clock.advance(6)
        assert ledger.startable("sdxl_queue", 1)[0][0].job_id == "retried"
