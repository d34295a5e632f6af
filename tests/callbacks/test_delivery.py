"""Deliveries to real HTTP receivers: their order, their number, and the secrets in them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ourvidz.callbacks import delivery
from ourvidz.callbacks.delivery import CallbackSender, Target
from ourvidz.callbacks.limiter import PerHostLimiter
from ourvidz.callbacks.signing import Verification, verify
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
    """Claim a job, and end it unless `outcome` is None: one or two events in the outbox."""

    def run(id: str = "job-1", *, outcome: Outcome | None = DONE, **fields: Any) -> None:
        record = ledger.register(make_job(id, **fields), priority=6).record
        claim = ledger.claim(id, record.run, worker_id="sdxl@host-cpu", lease_s=10, token=id)
        assert claim is not None
        if outcome is not None:
            assert ledger.end(claim, outcome=outcome)

    return run


@pytest.fixture
def sender_to(ledger: Ledger, clock: Any) -> Callable[..., CallbackSender]:
    """Make a sender whose default receiver has this URL; keyword arguments are fields of its `Target`."""

    def make(url: str | None, limiter: PerHostLimiter | None = None, **settings: Any) -> CallbackSender:
        target = Target(**{"default_url": url, "worker_version": "1", "timeout_s": 5.0, **settings})
        return CallbackSender(ledger, target, limiter=limiter, rng=random.Random(1), clock=clock)

    return make


def terminal(ledger: Ledger, job_id: str = "job-1") -> Any:
    """The terminal event of a job, in any delivery state."""
    rows = [row for state in ("pending", "delivered", "dead") for row in ledger.list_events(state)]  # type: ignore[arg-type]
    return next(row for row in rows if row.job_id == job_id and row.terminal)


def test_events_of_a_job_arrive_in_order(receiver: Any, ledger: Any, run_job: Any, sender_to: Any) -> None:
    """`completed` before `processing` would leave the caller's page waiting."""
    run_job()
    sender_to(receiver.url).deliver("job-1")
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]
    sequences = [post.payload["sequence"] for post in receiver.posts]
    assert sequences == sorted(sequences)
    assert receiver.posts[0].path == "/functions/v1/job-callback"
    assert receiver.posts[0].headers["Content-Type"] == "application/json"
    assert ledger.next_event("job-1") is None
    assert terminal(ledger).state == "delivered"
    assert terminal(ledger).last_status == 200


def test_a_job_without_events_is_not_delivered(receiver: Any, sender_to: Any) -> None:
    """Delivery messages may repeat; only the outbox decides what is due."""
    sender_to(receiver.url).deliver("unknown")
    assert receiver.posts == []


def test_a_delivered_event_is_not_sent_again(receiver: Any, run_job: Any, sender_to: Any) -> None:
    """The sweep and the signal may both request a delivery."""
    run_job()
    for _ in range(3):
        sender_to(receiver.url).deliver("job-1")
    assert len(receiver.posts) == 2


@pytest.mark.parametrize("status", [503, 400])
def test_processing_is_posted_once(receiver: Any, run_job: Any, sender_to: Any, status: int) -> None:
    """It is soon outdated, and a retry would delay the terminal event behind it."""
    receiver.script = [(status, {})]
    run_job()
    sender_to(receiver.url).deliver("job-1")
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]


def test_a_terminal_event_is_retried_under_one_id(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """Receivers recognise a repeated event by its id; its body must not change either."""
    receiver.script = [(200, {}), (503, {}), (429, {}), (409, {})]
    run_job()
    sender = sender_to(receiver.url, webhook_secrets=(WEBHOOK_SECRET,))
    while ledger.next_event("job-1") is not None:
        sender.deliver("job-1")
        clock.advance(60)
    terminal_posts = receiver.posts[1:]
    assert len(terminal_posts) == 4
    assert len({post.headers["webhook-id"] for post in terminal_posts}) == 1
    assert len({post.body for post in terminal_posts}) == 1
    assert len({post.headers["traceparent"].split("-")[1] for post in terminal_posts}) == 1
    assert terminal_posts[0].headers["webhook-id"] != receiver.posts[0].headers["webhook-id"]
    assert terminal(ledger).state == "delivered"
    assert terminal(ledger).deliveries == 4


def test_retry_after_postpones_an_event(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """The receiver asked for no request before that time."""
    receiver.script = [(200, {}), (429, {"Retry-After": "120"})]
    run_job()
    sender = sender_to(receiver.url)
    sender.deliver("job-1")
    assert terminal(ledger).state == "pending"
    assert terminal(ledger).last_error == "HTTP 429"
    clock.advance(119)
    sender.deliver("job-1")
    assert len(receiver.posts) == 2
    clock.advance(3)
    sender.deliver("job-1")
    assert len(receiver.posts) == 3


@pytest.mark.parametrize(("status", "headers"), [(400, {}), (302, {"Location": "/elsewhere"}), (404, {})])
def test_a_refused_event_becomes_a_dead_letter(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any, status: int, headers: dict[str, str]
) -> None:
    """A retry would be refused too; an operator has to look at it."""
    receiver.script = [(200, {}), (status, headers)]
    run_job()
    sender_to(receiver.url).deliver("job-1")
    assert len(receiver.posts) == 2
    (dead,) = ledger.list_events("dead")
    assert (dead.last_status, dead.last_error) == (status, f"HTTP {status}")


def test_a_dead_letter_can_be_replayed(receiver: Any, ledger: Any, run_job: Any, sender_to: Any) -> None:
    """Once the receiver is repaired it gets the event, under the same id."""
    receiver.script = [(200, {}), (500, {})]
    run_job()
    receiver.script[1] = (422, {})
    sender = sender_to(receiver.url, webhook_secrets=(WEBHOOK_SECRET,))
    sender.deliver("job-1")
    (dead,) = ledger.list_events("dead")
    ledger.replay(dead.event_id)
    sender.deliver("job-1")
    assert ledger.list_events("dead") == []
    assert [post.headers["webhook-id"] for post in receiver.posts[1:]] == [dead.event_id] * 2


def test_an_unreachable_receiver_is_retried(ledger: Any, run_job: Any, sender_to: Any) -> None:
    """Receivers restart, and are back seconds later."""
    run_job()
    sender_to("http://127.0.0.1:9/").deliver("job-1")
    assert terminal(ledger).state == "pending"
    assert terminal(ledger).last_error == "the connection failed"
    assert terminal(ledger).last_status is None


def test_an_event_is_given_up_after_its_window(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """An event is not retried for ever: it becomes a dead letter, which operators can list."""
    receiver.script = [(200, {})] + [(503, {})] * 1000
    run_job()
    sender = sender_to(receiver.url, window_s=100.0)
    sender.deliver("job-1")
    while ledger.next_event("job-1") is not None:
        clock.advance(10)
        sender.deliver("job-1")
    assert clock() <= terminal(ledger).at + 300
    assert terminal(ledger).state == "dead"
    assert len(receiver.posts) >= 10


def test_every_post_is_signed(receiver: Any, clock: Any, run_job: Any, sender_to: Any) -> None:
    """Service key, callback signature and webhook signature, on every post."""
    run_job()
    secrets = {"callback_secrets": ("new", "old"), "webhook_secrets": (WEBHOOK_SECRET,)}
    sender_to(receiver.url, service_key="the key", **secrets).deliver("job-1")
    for post in receiver.posts:
        assert post.headers["Authorization"] == "Bearer the key"
        now = datetime.fromtimestamp(clock(), UTC)
        assert verify(post.body, post.headers, now=now, **secrets) == Verification("valid", "valid")


def test_a_secret_key_is_sent_as_apikey_alone(receiver: Any, run_job: Any, sender_to: Any) -> None:
    """Gateways answer a bearer token that is no JWT with 401: every callback would be a dead letter."""
    run_job()
    sender_to(receiver.url, service_key="sb_secret_x").deliver("job-1")
    assert [post.headers["apikey"] for post in receiver.posts] == ["sb_secret_x"] * 2
    assert not any("sb_secret_x" in post.headers.get("Authorization", "") for post in receiver.posts)


def test_a_post_is_signed_with_the_time_of_this_host(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """The server's clock was set back by an hour: the ledger's time is ahead, and receivers would refuse."""
    ledger.now()
    clock.advance(-3600)
    run_job()
    assert ledger.now() > clock() + 3500
    sender_to(receiver.url, webhook_secrets=(WEBHOOK_SECRET,)).deliver("job-1")
    for post in receiver.posts:
        now = datetime.fromtimestamp(clock(), UTC)
        assert verify(post.body, post.headers, now=now, webhook_secrets=(WEBHOOK_SECRET,)).ok


def test_a_process_that_was_suspended_posts_nothing_under_an_ended_lease(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any, monkeypatch: Any
) -> None:
    """Frozen between the lease and the post, it must not post after others have."""
    run_job()
    passed_s = 0.0
    monkeypatch.setattr(delivery, "time", SimpleNamespace(monotonic=lambda: passed_s))
    encode = delivery.payload.encode

    def freeze(document: Any) -> bytes:
        nonlocal passed_s
        passed_s += 60
        return encode(document)

    monkeypatch.setattr(delivery.payload, "encode", freeze)
    sender_to(receiver.url).deliver("job-1")
    assert receiver.posts == []


@pytest.mark.parametrize("late", ["lease_event", "mark_delivered"])
def test_a_lease_that_could_end_during_the_post_is_not_used(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, sender_to: Any, monkeypatch: Any, late: str
) -> None:
    """Its answer was lost and came late: another process may post this event, and the next one, meanwhile."""
    run_job()
    passed_s = 0.0
    monkeypatch.setattr(delivery, "time", SimpleNamespace(monotonic=lambda: passed_s, time=clock))
    call = getattr(ledger, late)

    def slow(*args: Any, **options: Any) -> Any:
        nonlocal passed_s
        answer = call(*args, **options)
        passed_s += 6
        return answer

    monkeypatch.setattr(ledger, late, slow)
    sender_to(receiver.url).deliver("job-1")
    assert len(receiver.posts) == (0 if late == "lease_event" else 1)
    monkeypatch.setattr(ledger, late, call)
    clock.advance(10)
    sender_to(receiver.url).deliver("job-1")
    assert [status for _, status in receiver.statuses] == ["processing", "completed"]


def test_a_defect_of_ours_is_retried_with_pauses_and_ends(
    receiver: Any, clock: Any, ledger: Any, run_job: Any, sender_to: Any, monkeypatch: Any
) -> None:
    """Raised on, the event would be posted again each time its lease ends, for ever."""
    run_job()
    sender = sender_to(receiver.url, window_s=60.0)

    def broken(*_: Any, **__: Any) -> Any:
        raise OverflowError("too large")

    monkeypatch.setattr(sender._client, "post", broken)
    sender.deliver("job-1")
    assert terminal(ledger).last_error == "the request cannot be made: OverflowError"
    assert terminal(ledger).leased_until is None
    while ledger.next_event("job-1") is not None:
        clock.advance(100)
        sender.deliver("job-1")
    assert terminal(ledger).state == "dead"
    assert terminal(ledger).deliveries == 10


def test_a_pause_that_no_clock_can_express_is_ignored(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """A receiver cannot have its event posted every few seconds, nor keep it from ever being given up."""
    receiver.script = [(200, {}), (503, {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"})]
    run_job()
    sender_to(receiver.url).deliver("job-1")
    assert (terminal(ledger).last_error, terminal(ledger).leased_until) == ("HTTP 503", None)


@pytest.mark.parametrize("key", ["the key", "sb_secret_x"])
def test_another_host_gets_signatures_but_not_the_key(
    make_receiver: Any, run_job: Any, sender_to: Any, key: str
) -> None:
    """The service key gives access to the caller's backend, which another host does not own."""
    ours, theirs = make_receiver(), make_receiver()
    run_job(callback_url=theirs.url)
    sender = sender_to(ours.url, service_key=key, callback_secrets=("s1",), allowed_hosts=(theirs.host,))
    sender.deliver("job-1")
    assert ours.posts == []
    assert len(theirs.posts) == 2
    for post in theirs.posts:
        assert not {"Authorization", "apikey"} & set(post.headers)
        assert "X-Callback-Signature" in post.headers
        assert key.encode() not in post.body


def test_a_host_that_is_no_longer_allowed_is_not_called(
    make_receiver: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """Removing a host from the allow-list applies to jobs that are already running."""
    ours, theirs = make_receiver(), make_receiver()
    run_job(callback_url=theirs.url)
    sender_to(ours.url).deliver("job-1")
    assert theirs.posts == ours.posts == []
    assert terminal(ledger).state == "dead"
    assert terminal(ledger).last_error == NOT_ALLOWED


def test_an_allowed_host_is_not_called_at_a_link_local_address(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """Cloud metadata is there, and the name server of an allowed host may point to it."""
    run_job(callback_url="http://169.254.169.254/latest/")
    sender_to(receiver.url, allowed_hosts=("169.254.169.254",)).deliver("job-1")
    assert terminal(ledger).last_error == "the host may not be called"
    assert receiver.posts == []


def test_without_any_url_an_event_becomes_a_dead_letter(ledger: Any, run_job: Any, sender_to: Any) -> None:
    """Its error says that no receiver is configured."""
    run_job()
    sender_to(None).deliver("job-1")
    assert terminal(ledger).state == "dead"
    assert terminal(ledger).last_error == NO_URL


def test_a_failed_job_is_delivered_with_its_error(receiver: Any, run_job: Any, sender_to: Any) -> None:
    """From the committed outcome to the receiver."""
    run_job(outcome=Outcome.failure(InternalError("something broke")))
    sender_to(receiver.url).deliver("job-1")
    assert receiver.posts[1].payload["error"]["code"] == "INTERNAL_ERROR"
    assert receiver.posts[1].payload["assets"] == []


def test_assets_are_sent_as_urls_where_configured(receiver: Any, run_job: Any, sender_to: Any) -> None:
    """Older receivers read a plain list of strings."""
    run_job()
    sender_to(receiver.url, assets_as="urls").deliver("job-1")
    assert receiver.posts[1].payload["assets"] == ["workspace-temp/u/j/0.png"]


def test_a_receiver_that_never_answers_is_left_at_the_deadline(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """It occupies a thread for the request timeout and no longer."""
    receiver.hold.set()
    run_job()
    sender_to(receiver.url, timeout_s=0.3).deliver("job-1")
    assert len(receiver.posts) == 2
    assert terminal(ledger).state == "pending"
    assert terminal(ledger).last_error == "no answer in time"


def test_a_receiver_that_never_answers_does_not_delay_other_hosts(
    make_receiver: Any, run_job: Any, sender_to: Any
) -> None:
    """Five threads, twenty jobs for one host without answers: the other host gets its callbacks at once."""
    ours, hung = make_receiver(), make_receiver()
    hung.hold.set()
    for n in range(20):
        run_job(f"hung-{n}", callback_url=hung.url)
    run_job("free")
    sender = sender_to(ours.url, allowed_hosts=(hung.host,))
    with ThreadPoolExecutor(5) as threads:
        deliveries = [threads.submit(sender.deliver, f"hung-{n}") for n in range(20)]
        hung.wait_for(4)
        threads.submit(sender.deliver, "free").result(PATIENCE_S)
        assert ours.statuses == [("free", "processing"), ("free", "completed")]
        assert len(hung.posts) == 4
        hung.hold.clear()
        hung.released.set()
        for each in deliveries:
            each.result(PATIENCE_S)
    assert hung.max_active == 4
    assert sorted(hung.statuses) == sorted(
        (f"hung-{n}", status) for n in range(20) for status in ("processing", "completed")
    )


def test_one_thread_at_a_time_delivers_a_job(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """Two concurrent deliveries of a job could change the order of its events."""
    run_job()
    sender = sender_to(receiver.url)
    receiver.hold.set()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(sender.deliver, "job-1")
        receiver.wait_for(1)
        for _ in range(3):
            threads.submit(sender.deliver, "job-1").result(PATIENCE_S)
        assert len(receiver.posts) == 1
        receiver.released.set()
        first.result(PATIENCE_S)
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]
    assert receiver.max_active == 1


def test_an_event_committed_during_a_post_is_delivered_by_the_same_thread(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """A fast job ends while its `processing` event is being posted."""
    run_job(outcome=None)
    sender = sender_to(receiver.url)
    receiver.hold.set()
    delivering = threading.Thread(target=sender.deliver, args=("job-1",))
    delivering.start()
    receiver.wait_for(1)
    record = ledger.get("job-1")
    assert ledger.end(record, outcome=DONE)
    receiver.hold.clear()
    receiver.released.set()
    delivering.join(PATIENCE_S)
    assert receiver.statuses == [("job-1", "processing"), ("job-1", "completed")]


def test_a_payload_that_cannot_be_written_becomes_a_dead_letter(
    receiver: Any, ledger: Any, run_job: Any, sender_to: Any
) -> None:
    """Raised on, the error would return at every delivery."""
    run_job(outcome=Outcome(status="completed", metadata={"generation_time": "fast"}))
    sender_to(receiver.url).deliver("job-1")
    assert [status for _, status in receiver.statuses] == ["processing"]
    assert terminal(ledger).state == "dead"
    assert "cannot be written" in terminal(ledger).last_error
