"""The courier against real receivers: what arrives, in what order, how often, and with which secrets."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from ourvidz.callbacks.delivery import CallbackSender, Target
from ourvidz.callbacks.lanes import PerHostLimiter
from ourvidz.callbacks.signing import Verified, verify
from ourvidz.callbacks.target import NO_URL, NOT_ALLOWED
from ourvidz.errors import InternalError
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger

PATIENCE_S = 10.0
WEBHOOK_SECRET = "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBzZWNyZXQga2V5IQ=="
DONE = Outcome(status="completed", assets=(Asset(type="image", key="workspace-temp/u/j/0.png"),))


@pytest.fixture
def ledger(clock: Any, make_ledger: Callable[..., Ledger]) -> Ledger:
    """A ledger on the tests' clock."""
    return make_ledger(clock=clock)


@pytest.fixture
def run_job(ledger: Ledger, make_job: Callable[..., ImageJob]) -> Callable[..., None]:
    """Let a job start, and end unless told otherwise: one or two rows in the outbox."""

    def run(id: str = "job-1", *, outcome: Outcome | None = DONE, **chosen: Any) -> None:
        record = ledger.register(make_job(id, **chosen), priority=6).record
        claim = ledger.claim(id, record.run, worker_id="sdxl@host-cpu", lease_s=10, token=id)
        assert claim is not None
        if outcome is not None:
            assert ledger.end(id, run=claim.run, fence=claim.fence, outcome=outcome)

    return run


@pytest.fixture
def courier_to(ledger: Ledger) -> Callable[..., CallbackSender]:
    """A courier whose default receiver is the given one; anything may be chosen."""

    def make(url: str | None, lanes: PerHostLimiter | None = None, **chosen: Any) -> CallbackSender:
        target = Target(**{"default_url": url, "worker_version": "1", "timeout_s": 5.0, **chosen})
        return CallbackSender(ledger, target, lanes=lanes, rng=random.Random(1))

    return make


def terminal(ledger: Ledger, job_id: str = "job-1") -> Any:
    """The terminal row of a job, whatever became of it."""
    rows = [row for state in ("pending", "delivered", "dead") for row in ledger.list_events(state)]  # type: ignore[arg-type]
    return next(row for row in rows if row.job_id == job_id and row.terminal)


def test_a_job_is_told_in_order(receiver: Any, ledger: Any, run_job: Any, courier_to: Any) -> None:
    """`completed` before `processing` would leave the caller's page waiting."""
    run_job()
    courier_to(receiver.url).deliver("job-1")
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]
    sequences = [post.payload["sequence"] for post in receiver.posts]
    assert sequences == sorted(sequences)
    assert receiver.posts[0].path == "/functions/v1/job-callback"
    assert receiver.posts[0].headers["Content-Type"] == "application/json"
    assert ledger.next_event("job-1") is None
    assert terminal(ledger).state == "delivered"
    assert terminal(ledger).last_status == 200


def test_a_job_with_nothing_to_tell_is_left_alone(receiver: Any, courier_to: Any) -> None:
    """Messages repeat; the outbox decides."""
    courier_to(receiver.url).deliver("unknown")
    assert receiver.posts == []


def test_a_delivered_event_is_not_sent_again(receiver: Any, run_job: Any, courier_to: Any) -> None:
    """The sweep and the signal may both dispatch."""
    run_job()
    for _ in range(3):
        courier_to(receiver.url).deliver("job-1")
    assert len(receiver.posts) == 2


@pytest.mark.parametrize("status", [503, 400])
def test_processing_is_posted_once(receiver: Any, run_job: Any, courier_to: Any, status: int) -> None:
    """It is news only for a moment, and must not hold up the end."""
    receiver.script = [(status, {})]
    run_job()
    courier_to(receiver.url).deliver("job-1")
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]


def test_a_terminal_event_is_retried_under_one_id(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """The id is what makes a receiver idempotent, the body must not change either."""
    receiver.script = [(200, {}), (503, {}), (429, {}), (409, {})]
    run_job()
    courier = courier_to(receiver.url, webhook_secrets=(WEBHOOK_SECRET,))
    while ledger.next_event("job-1") is not None:
        courier.deliver("job-1")
        clock.pass_(60)
    terminal_posts = receiver.posts[1:]
    assert len(terminal_posts) == 4
    assert len({post.headers["webhook-id"] for post in terminal_posts}) == 1
    assert len({post.body for post in terminal_posts}) == 1
    assert len({post.headers["traceparent"].split("-")[1] for post in terminal_posts}) == 1
    assert terminal_posts[0].headers["webhook-id"] != receiver.posts[0].headers["webhook-id"]
    assert terminal(ledger).state == "delivered"
    assert terminal(ledger).deliveries == 4


def test_a_postponed_event_waits(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """Retry-After is a request not to come back before."""
    receiver.script = [(200, {}), (429, {"Retry-After": "120"})]
    run_job()
    courier = courier_to(receiver.url)
    courier.deliver("job-1")
    assert terminal(ledger).state == "pending"
    assert terminal(ledger).last_error == "HTTP 429"
    clock.pass_(119)
    courier.deliver("job-1")
    assert len(receiver.posts) == 2
    clock.pass_(3)
    courier.deliver("job-1")
    assert len(receiver.posts) == 3


@pytest.mark.parametrize(("status", "headers"), [(400, {}), (302, {"Location": "/elsewhere"}), (404, {})])
def test_a_refusal_is_a_dead_letter(
    receiver: Any, ledger: Any, run_job: Any, courier_to: Any, status: int, headers: dict[str, str]
) -> None:
    """Asking again would get the same answer; an operator must look."""
    receiver.script = [(200, {}), (status, headers)]
    run_job()
    courier_to(receiver.url).deliver("job-1")
    assert len(receiver.posts) == 2
    (letter,) = ledger.list_events("dead")
    assert (letter.last_status, letter.last_error) == (status, f"HTTP {status}")


def test_a_dead_letter_can_be_replayed(receiver: Any, ledger: Any, run_job: Any, courier_to: Any) -> None:
    """Once the receiver is repaired the caller still gets its answer, under the same id."""
    receiver.script = [(200, {}), (500, {})]
    run_job()
    receiver.script[1] = (422, {})
    courier = courier_to(receiver.url, webhook_secrets=(WEBHOOK_SECRET,))
    courier.deliver("job-1")
    (letter,) = ledger.list_events("dead")
    ledger.replay(letter.event_id)
    courier.deliver("job-1")
    assert ledger.list_events("dead") == []
    assert [post.headers["webhook-id"] for post in receiver.posts[1:]] == [letter.event_id] * 2


def test_an_unreachable_receiver_is_retried(ledger: Any, run_job: Any, courier_to: Any) -> None:
    """Receivers restart."""
    run_job()
    courier_to("http://127.0.0.1:9/").deliver("job-1")
    assert terminal(ledger).state == "pending"
    assert terminal(ledger).last_error == "the connection failed"
    assert terminal(ledger).last_status is None


def test_an_event_is_given_up_after_its_window(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """For ever is not a plan; a dead letter is."""
    receiver.script = [(200, {})] + [(503, {})] * 1000
    run_job()
    courier = courier_to(receiver.url, window_s=100.0)
    courier.deliver("job-1")
    while ledger.next_event("job-1") is not None:
        clock.pass_(10)
        courier.deliver("job-1")
    assert clock() <= terminal(ledger).at + 300
    assert terminal(ledger).state == "dead"
    assert len(receiver.posts) >= 10


def test_every_post_is_signed(receiver: Any, clock: Any, run_job: Any, courier_to: Any) -> None:
    """All three ways a receiver may check at once."""
    run_job()
    secrets = {"callback_secrets": ("new", "old"), "webhook_secrets": (WEBHOOK_SECRET,)}
    courier_to(receiver.url, service_key="the key", **secrets).deliver("job-1")
    for post in receiver.posts:
        assert post.headers["Authorization"] == "Bearer the key"
        now = datetime.fromtimestamp(clock(), UTC)
        assert verify(post.body, post.headers, now=now, **secrets) == Verified("valid", "valid")


def test_another_host_gets_signatures_but_not_the_key(
    make_receiver: Any, run_job: Any, courier_to: Any
) -> None:
    """The service key opens the caller's backend; whoever runs a callback URL must not learn it."""
    ours, theirs = make_receiver(), make_receiver()
    run_job(callback_url=theirs.url)
    courier = courier_to(
        ours.url, service_key="the key", callback_secrets=("s1",), allowed_hosts=(theirs.host,)
    )
    courier.deliver("job-1")
    assert ours.posts == []
    assert len(theirs.posts) == 2
    for post in theirs.posts:
        assert "Authorization" not in post.headers
        assert "X-Callback-Signature" in post.headers
        assert b"the key" not in post.body


def test_a_host_that_is_no_longer_allowed_is_not_called(
    make_receiver: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """An operator who takes a host off the list means the jobs under way too."""
    ours, theirs = make_receiver(), make_receiver()
    run_job(callback_url=theirs.url)
    courier_to(ours.url).deliver("job-1")
    assert theirs.posts == ours.posts == []
    assert terminal(ledger).state == "dead"
    assert terminal(ledger).last_error == NOT_ALLOWED


def test_an_allowed_host_is_not_called_at_a_link_local_address(
    receiver: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """Clouds keep their credentials there, and an allowed name may one day point to it."""
    run_job(callback_url="http://169.254.169.254/latest/")
    courier_to(receiver.url, allowed_hosts=("169.254.169.254",)).deliver("job-1")
    assert terminal(ledger).last_error == "the host may not be called"
    assert receiver.posts == []


def test_no_url_at_all_is_a_dead_letter_that_says_so(ledger: Any, run_job: Any, courier_to: Any) -> None:
    """An installation without a receiver should be seen, not guessed."""
    run_job()
    courier_to(None).deliver("job-1")
    assert terminal(ledger).state == "dead"
    assert terminal(ledger).last_error == NO_URL


def test_a_failure_is_told_as_one(receiver: Any, run_job: Any, courier_to: Any) -> None:
    """The whole way from the committed outcome to the receiver."""
    run_job(outcome=Outcome.failure(InternalError("something broke")))
    courier_to(receiver.url).deliver("job-1")
    assert receiver.posts[1].payload["error"]["code"] == "INTERNAL_ERROR"
    assert receiver.posts[1].payload["assets"] == []


def test_the_url_form_is_sent_when_chosen(receiver: Any, run_job: Any, courier_to: Any) -> None:
    """Receivers of the July generation."""
    run_job()
    courier_to(receiver.url, assets_as="urls").deliver("job-1")
    assert receiver.posts[1].payload["assets"] == ["workspace-temp/u/j/0.png"]


def test_a_hung_receiver_is_left_at_the_deadline(
    receiver: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """It holds a thread for the timeout and no longer."""
    receiver.hold.set()
    run_job()
    courier_to(receiver.url, timeout_s=0.3).deliver("job-1")
    assert len(receiver.posts) == 2
    assert terminal(ledger).state == "pending"
    assert terminal(ledger).last_error == "no answer in time"


def test_a_hung_receiver_does_not_hold_other_hosts(make_receiver: Any, run_job: Any, courier_to: Any) -> None:
    """Five threads, one dead host with twenty jobs: the other host's callbacks go out at once."""
    ours, hung = make_receiver(), make_receiver()
    hung.hold.set()
    for n in range(20):
        run_job(f"hung-{n}", callback_url=hung.url)
    run_job("free")
    courier = courier_to(ours.url, allowed_hosts=(hung.host,))
    with ThreadPoolExecutor(5) as threads:
        dispatched = [threads.submit(courier.deliver, f"hung-{n}") for n in range(20)]
        hung.wait_for(4)
        threads.submit(courier.deliver, "free").result(PATIENCE_S)
        assert ours.statuses == [("free", "processing"), ("free", "completed")]
        assert len(hung.posts) == 4
        hung.hold.clear()
        hung.released.set()
        for one in dispatched:
            one.result(PATIENCE_S)
    assert hung.most_under_way == 4
    assert sorted(hung.statuses) == sorted(
        (f"hung-{n}", status) for n in range(20) for status in ("processing", "completed")
    )


def test_one_job_is_told_by_one_thread_at_a_time(
    receiver: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """Two dispatches of the same job must not overtake each other."""
    run_job()
    courier = courier_to(receiver.url)
    receiver.hold.set()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(courier.deliver, "job-1")
        receiver.wait_for(1)
        for _ in range(3):
            threads.submit(courier.deliver, "job-1").result(PATIENCE_S)
        assert len(receiver.posts) == 1
        receiver.released.set()
        first.result(PATIENCE_S)
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]
    assert receiver.most_under_way == 1


def test_what_is_committed_while_posting_is_told_by_the_same_thread(
    receiver: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """A fast job ends while its start is still being told."""
    run_job(outcome=None)
    courier = courier_to(receiver.url)
    receiver.hold.set()
    told = threading.Thread(target=courier.deliver, args=("job-1",))
    told.start()
    receiver.wait_for(1)
    record = ledger.get("job-1")
    assert ledger.end("job-1", run=record.run, fence=record.fence, outcome=DONE)
    receiver.hold.clear()
    receiver.released.set()
    told.join(PATIENCE_S)
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]


def test_a_payload_that_cannot_be_written_is_a_dead_letter(
    receiver: Any, ledger: Any, run_job: Any, courier_to: Any
) -> None:
    """A row that raises at every delivery would come back for ever."""
    run_job(outcome=Outcome(status="completed", metadata={"generation_time": "fast"}))
    courier_to(receiver.url).deliver("job-1")
    assert [status for _, status in receiver.statuses] == ["processing"]
    assert terminal(ledger).state == "dead"
    assert "cannot be written" in terminal(ledger).last_error
