"""The io process's loop: who delivers what, receivers that hang, stopping, draining."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from ourvidz.callbacks.consumer import OutboxConsumer
from ourvidz.callbacks.delivery import CallbackSender
from ourvidz.callbacks.target import Target
from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import ReadyJob
from tests.factories import worker

PATIENCE_S = 20.0
DONE = Outcome(status="completed")
IO = "io@host"


class BreakableLedger(Ledger):
    """A ledger whose outbox cannot be read for a while; `asked` counts the tries."""

    broken = False
    asked = 0

    def take_ready(self, *, wait_s: float) -> ReadyJob | None:
        self.asked += 1
        if self.broken:
            self.broken = False
            raise WorkerUnavailable("the job store cannot be reached")
        return super().take_ready(wait_s=wait_s)


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> BreakableLedger:
    """A ledger on the server's clock."""
    made = make_ledger(BreakableLedger)
    assert isinstance(made, BreakableLedger)
    return made


@pytest.fixture
def finish(ledger: Ledger, make_job: Callable[..., ImageJob]) -> Callable[..., None]:
    """Run a job to its end: two events in the outbox."""

    def run(id: str, **fields: Any) -> None:
        record = ledger.register(make_job(id, **fields), priority=6).record
        claim = ledger.claim(id, record.run, worker_id="sdxl@host-cpu", lease_s=10, token=id)
        assert claim is not None
        assert ledger.end(claim, outcome=DONE)

    return run


@pytest.fixture
def start(ledger: Ledger) -> Iterator[Callable[..., OutboxConsumer]]:
    """Start consumers that deliver to receivers; each is stopped after the test."""
    with ExitStack() as stack:

        def begin(
            *receivers: Any, worker_id: str = IO, allowed_hosts: Sequence[str] | None = None, **options: Any
        ) -> OutboxConsumer:
            target = Target(
                default_url=receivers[0].url,
                worker_version="1",
                timeout_s=PATIENCE_S,
                allowed_hosts=allowed_hosts or [receiver.host for receiver in receivers],
            )
            sender = CallbackSender(ledger, target)
            consumer = OutboxConsumer(ledger, sender, worker_id=worker_id, **{"poll_s": 0.2, **options})
            stack.callback(end, consumer)
            consumer.start()
            return consumer

        def end(consumer: OutboxConsumer) -> None:
            consumer.stop()
            assert consumer.join(PATIENCE_S), "a thread would go on in the tests that follow"

        yield begin


def test_what_becomes_due_is_delivered_at_once_and_in_order(receiver: Any, start: Any, finish: Any) -> None:
    """No message, no keeper and no sweep is needed."""
    start(receiver)
    for number in range(5):
        finish(f"job-{number}")
    receiver.wait_for(10)
    for number in range(5):
        of_job = [status for job_id, status in receiver.statuses if job_id == f"job-{number}"]
        assert of_job == ["processing", "completed"]


def test_what_was_due_before_the_start_is_delivered(
    receiver: Any, ledger: Ledger, start: Any, finish: Any
) -> None:
    """Also if its announcement was lost, with a process that took it and died."""
    finish("job-1")
    assert ledger.take_ready(wait_s=0.1) is not None
    start(receiver)
    receiver.wait_for(2)


def test_processes_share_the_work_and_repeat_nothing(receiver: Any, start: Any, finish: Any) -> None:
    """Any number may run; the leases of events keep them apart."""
    for number in range(3):
        start(receiver, worker_id=f"io@host-{number}")
    for number in range(20):
        finish(f"job-{number}")
    receiver.wait_for(40)
    assert len(set(receiver.statuses)) == len(receiver.posts) == 40


def test_a_receiver_that_hangs_does_not_delay_the_others(make_receiver: Any, start: Any, finish: Any) -> None:
    """It holds four threads at most, and its other jobs wait without one."""
    free, hung = make_receiver(), make_receiver()
    hung.hold.set()
    start(free, hung, threads=6)
    for number in range(12):
        finish(f"hung-{number}", callback_url=hung.url)
    hung.wait_for(4)
    for number in range(12):
        finish(f"free-{number}")
    free.wait_for(24)
    assert hung.max_active == len(hung.posts) == 4
    hung.hold.clear()
    hung.released.set()
    hung.wait_for(24)


def test_receivers_that_hang_leave_threads_to_the_default_receiver(
    make_receiver: Any, start: Any, finish: Any
) -> None:
    """Four listed hosts that hang could take all sixteen threads, four each."""
    free, *hung = (make_receiver() for _ in range(5))
    arrived = threading.Condition()
    for each in hung:
        each.hold.set()
        each.changed = arrived
    start(free, *hung)
    for number, each in enumerate(hung):
        for job in range(6):
            finish(f"hung-{number}-{job}", callback_url=each.url)
    with arrived:
        assert arrived.wait_for(lambda: sum(each.active for each in hung) == 12, PATIENCE_S)
    finish("free")
    free.wait_for(2)
    assert sum(each.active for each in hung) == 12
    for each in hung:
        each.hold.clear()
        each.released.set()
    for each in hung:
        each.wait_for(12)


def test_the_ports_of_a_listed_host_share_its_threads(make_receiver: Any, start: Any, finish: Any) -> None:
    """A caller chooses the port where an operator has listed the host alone."""
    free, *hung = (make_receiver() for _ in range(4))
    for each in hung:
        each.hold.set()
    start(free, allowed_hosts=["127.0.0.1"])
    arrived = threading.Condition()
    for each in hung:
        each.changed = arrived
    for number, each in enumerate(hung):
        for job in range(3):
            finish(f"hung-{number}-{job}", callback_url=each.url)
    with arrived:
        assert arrived.wait_for(lambda: sum(each.active for each in hung) == 4, PATIENCE_S)
    finish("free")
    free.wait_for(2)
    assert sum(each.active for each in hung) == 4
    for each in hung:
        each.hold.clear()
        each.released.set()
    for each in hung:
        each.wait_for(6)


def test_a_stopping_process_finishes_what_it_is_posting_and_begins_nothing(
    receiver: Any, ledger: Ledger, start: Any, finish: Any
) -> None:
    """The rest is delivered by another process, or the next one."""
    receiver.hold.set()
    consumer = start(receiver)
    finish("job-1")
    receiver.wait_for(1)
    consumer.stop()
    assert not consumer.wait_until_idle(0.01)
    receiver.hold.clear()
    receiver.released.set()
    assert consumer.wait_until_idle(PATIENCE_S)
    assert receiver.statuses == [("job-1", "processing")]
    (left,) = ledger.list_events("pending")
    assert (left.kind, left.deliveries, left.leased_until) == ("completed", 0, None)
    start(receiver, worker_id="io@another")
    receiver.wait_for(2)


def test_a_drained_process_delivers_nothing_until_it_is_resumed(
    receiver: Any, ledger: Ledger, start: Any, finish: Any
) -> None:
    """An operator takes one host out; a restart ends that."""
    ledger.heartbeat(worker("io", id=IO))
    beats = threading.Semaphore(0)
    start(receiver, beat=beats.release, poll_s=0.05)
    for _ in range(2):
        assert beats.acquire(timeout=PATIENCE_S)
    ledger.set_draining(IO, True)
    # It looks for what is due, and for the flag, at every other turn at least.
    for _ in range(5):
        assert beats.acquire(timeout=PATIENCE_S)
    finish("job-1")
    for _ in range(2):
        assert beats.acquire(timeout=PATIENCE_S)
    assert receiver.posts == []
    ledger.set_draining(IO, False)
    receiver.wait_for(2)


def test_a_restart_ends_a_drain(receiver: Any, ledger: Ledger, start: Any, finish: Any) -> None:
    """As for every worker."""
    ledger.heartbeat(worker("io", id=IO))
    ledger.set_draining(IO, True)
    start(receiver)
    finish("job-1")
    receiver.wait_for(2)


def test_an_outage_of_the_ledger_ends_no_thread(
    receiver: Any, ledger: BreakableLedger, start: Any, finish: Any
) -> None:
    """Deliveries go on when it is back."""
    ledger.broken = True
    start(receiver)
    finish("job-1")
    receiver.wait_for(2)
    assert ledger.asked >= 2


def test_a_delivery_that_raises_does_not_stop_its_thread(
    receiver: Any, ledger: Ledger, start: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that this release cannot read is set aside by the sweep."""
    lease, failures = ledger.lease_event, ["bad"]

    def fail_once(job_id: str, **options: Any) -> Any:
        if failures:
            raise ValueError(failures.pop())
        return lease(job_id, **options)

    monkeypatch.setattr(ledger, "lease_event", fail_once)
    start(receiver, threads=1)
    finish("job-1")
    receiver.wait_for(2)


def test_a_stopped_consumer_leaves_no_thread(start: Any, receiver: Any, finish: Any) -> None:
    """It begins nothing that is announced afterwards."""
    consumer = start(receiver)
    consumer.stop()
    assert consumer.join(PATIENCE_S)
    finish("job-1")
    assert consumer.wait_until_idle(0)
    assert receiver.posts == []
