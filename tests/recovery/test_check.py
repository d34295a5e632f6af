"""`check_ledger` on a real server: every kind of damage is found and mended, and nothing else is found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.findings import Finding
from ourvidz.records.record import Record
from ourvidz.recovery.check import CheckReport, Messages, check_ledger
from tests.recovery.corruption import DamagedLedger, damaged_ledger

DONE = Outcome(status="completed")


@dataclass
class Broker:
    """Holds the messages of these jobs. `after_first` is called after each reading."""

    job_ids: set[str] = field(default_factory=set)
    foreign: int = 0
    published: list[str] = field(default_factory=list)
    after_reading: Callable[[], None] = lambda: None

    def publish(self, record: Record) -> bool:
        self.published.append(record.job_id)
        return True

    def messages(self, queue: str) -> Messages:
        found = Messages(frozenset(self.job_ids), self.foreign if queue == "sdxl_queue" else 0)
        self.after_reading()
        return found


@pytest.fixture
def system() -> Iterator[DamagedLedger]:
    """A ledger with a job in every state: `queued`, `running`, `done` (delivered), `undelivered`,
    `refused` (a dead letter)."""
    with damaged_ledger() as made:
        made.add("queued")
        made.claim("running")
        for job_id in ("done", "undelivered", "refused"):
            made.ledger.end(made.claim(job_id), outcome=DONE)
        for job_id in ("done", "refused"):
            while event := made.ledger.lease_event(job_id, lease_s=5, token=f"{job_id}{made.clock()}"):
                if job_id == "refused" and event.terminal:
                    made.ledger.dead_letter(event, status=400, error="HTTP 400")
                else:
                    made.ledger.mark_delivered(event, status=200)
                made.clock.advance(1)
        yield made


@pytest.fixture
def broker() -> Broker:
    return Broker(job_ids={"queued"})


def check(system: DamagedLedger, broker: Broker, *, repair: bool = False) -> CheckReport:
    return check_ledger(system.ledger, broker, repair=repair, sleep=lambda _: None)


def terminal_event(system: DamagedLedger, job_id: str) -> str:
    return str(system.client.hget(system.key(f"job:{job_id}"), "events")).split()[-1]


def test_a_healthy_ledger_has_no_findings(system: DamagedLedger, broker: Broker) -> None:
    """Jobs of all states, with and without pending events."""
    report = check(system, broker)
    assert (report.findings, report.ok, report.jobs) == ([], True, 5)
    assert report.events >= 5


Damage = Callable[[DamagedLedger], object]
DAMAGES: dict[str, tuple[str, Damage]] = {
    "a lease without a record": (
        "dangling", lambda s: s.client.zadd(s.key("leases"), {"gone": 1})),
    "a queued id without a record": (
        "dangling", lambda s: s.client.zadd(s.key("queued:wan_queue"), {"gone": 1})),
    "an ended id without a record": (
        "dangling", lambda s: s.client.zadd(s.key("finished"), {"gone": 1})),
    "a listed id without a record": (
        "dangling", lambda s: s.client.zadd(s.key("index:all"), {"gone": 1})),
    "an id of a user without a record": (
        "dangling", lambda s: s.client.zadd(s.key("index:user:user-1"), {"gone": 1})),
    "a document to remove without a record": (
        "dangling", lambda s: s.client.zadd(s.key("documents"), {"gone": 1})),
    "a due id without an event": (
        "dangling", lambda s: s.client.zadd(s.key("due"), {"gone": 1})),
    "a quarantined id without a record": (
        "dangling", lambda s: s.client.zadd(s.key("quarantine"), {"gone": 1})),
    "a document without a record": (
        "orphan", lambda s: s.client.set(s.key("doc:gone"), "{}")),
    "a stream without a record": (
        "orphan", lambda s: s.client.xadd(s.key("stream:gone"), {"k": "state"})),
    "a dead letter without its job": (
        "orphan", lambda s: s.client.delete(s.key("job:refused"))),
    "a queued job that is not queued": (
        "index", lambda s: s.client.zrem(s.key("queued:sdxl_queue"), "queued")),
    "a queued job in a wrong place": (
        "index", lambda s: s.client.zadd(s.key("queued:sdxl_queue"), {"queued": 1})),
    "a queued job in another queue": (
        "index", lambda s: s.client.zadd(s.key("queued:wan_queue"), {"queued": 1})),
    "a queued job with a lease": (
        "index", lambda s: s.client.zadd(s.key("leases"), {"queued": 1})),
    "a running job without a lease": (
        "index", lambda s: s.client.zrem(s.key("leases"), "running")),
    "a lease with another end than its record": (
        "index", lambda s: s.client.zadd(s.key("leases"), {"running": 1})),
    "an ended job that is never purged": (
        "index", lambda s: s.client.zrem(s.key("finished"), "done")),
    "an ended job that is queued": (
        "index", lambda s: s.client.zadd(s.key("queued:sdxl_queue"), {"done": 1})),
    "a job that no page lists": (
        "index", lambda s: s.client.zrem(s.key("index:all"), "done")),
    "a job that its user does not see": (
        "index", lambda s: s.client.zrem(s.key("index:user:user-1"), "done")),
    "an undelivered job that is not due": (
        "index", lambda s: s.client.zrem(s.key("due"), "undelivered")),
    "an undelivered job that is due too late": (
        "index", lambda s: s.client.zadd(s.key("due"), {"undelivered": 9e12})),
    "a pending event that is in no row": (
        "index", lambda s: s.client.zrem(s.key("rows:undelivered"), terminal_event(s, "undelivered"))),
    "an event without a state's list": (
        "index", lambda s: s.client.zrem(s.key("letters:dead"), terminal_event(s, "refused"))),
    "an event in another state's list": (
        "index", lambda s: s.client.zadd(s.key("letters:dead"), {terminal_event(s, "undelivered"): 1})),
    "a delivered event that is due": (
        "index", lambda s: s.client.zadd(s.key("rows:done"), {terminal_event(s, "done"): 1})),
    "a listed event that is gone": (
        "dangling", lambda s: s.client.zadd(s.key("letters:pending"), {"msg_gone": 1})),
    "a pending event that is gone": (
        "dangling", lambda s: s.client.zadd(s.key("rows:queued"), {"msg_gone": 1})),
    "an end without an event": (
        "event", lambda s: s.client.delete(s.key(f"event:{terminal_event(s, 'undelivered')}"))),
    "a queued job without its document": (
        "document", lambda s: s.client.delete(s.key("doc:queued"))),
    "an ended job that never expires": (
        "lifetime", lambda s: s.client.persist(s.key("job:done"))),
    "a queued job that expires": (
        "lifetime", lambda s: s.client.expire(s.key("job:queued"), 1000)),
    "orders that begin again": (
        "counter", lambda s: s.client.set(s.key("order"), 0)),
    "fences that begin again": (
        "counter", lambda s: s.client.set(s.key("fence"), 0)),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found_and_mended(system: DamagedLedger, broker: Broker, what: str) -> None:
    """With `repair` all of it at once; afterwards nothing is found."""
    code, damage = DAMAGES[what]
    damage(system)
    found = check(system, broker)
    assert code in {finding.code for finding in found.findings}, found
    assert not found.ok
    assert check(system, broker).findings == found.findings, "looking changes nothing"
    mended = check(system, broker, repair=True)
    assert mended.ok, mended
    assert check(system, broker).findings == []


def test_the_event_of_an_ended_job_is_added_again(system: DamagedLedger, broker: Broker) -> None:
    """Its caller would wait for ever."""
    event_id = terminal_event(system, "undelivered")
    system.client.delete(system.key(f"event:{event_id}"))
    check(system, broker, repair=True)
    pending = [event for event in system.ledger.list_events("pending") if event.job_id == "undelivered"]
    assert [event.outcome for event in pending if event.kind == "completed"] == [DONE]


def test_a_job_that_was_submitted_anew_meanwhile_is_not_ended(
    system: DamagedLedger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large ledger is checked for minutes: what was found first may be another job at the end."""
    system.client.delete(system.key("doc:queued"))

    def replace(_ledger: Ledger, **_: bool) -> list[Finding]:
        for name in ("job:queued", "index:all", "queued:sdxl_queue"):
            system.client.delete(system.key(name))
        system.claim("queued")
        return []

    monkeypatch.setattr("ourvidz.recovery.check.check_user_indexes", replace)
    check_ledger(system.ledger, broker, repair=True, sleep=lambda _s: None)
    assert system.status("queued") == "processing"


def test_a_job_without_its_document_ends_with_an_error(system: DamagedLedger, broker: Broker) -> None:
    """No worker could run it; it would be published again for a day."""
    system.client.delete(system.key("doc:queued"))
    check(system, broker, repair=True)
    record = system.ledger.get("queued")
    assert record is not None
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert (record.status, record.outcome.error.code) == ("failed", "INTERNAL_ERROR")


def test_an_unreadable_record_stays_a_finding_until_it_can_be_read(
    system: DamagedLedger, broker: Broker
) -> None:
    """With `repair` it is set aside; with a release that can read it, `repair` puts it back at once."""
    system.client.hset(system.key("job:queued"), "v", "99")
    assert [f.code for f in check(system, broker).findings] == ["unreadable"]
    assert not check(system, broker, repair=True).ok
    assert system.members("queued:sdxl_queue") == []
    system.client.hset(system.key("job:queued"), "v", "1")
    (finding,) = check(system, broker).findings
    assert (finding.code, finding.detail) == ("quarantine", "it has a record of version 99")
    assert check(system, broker, repair=True).findings == []
    assert system.members("queued:sdxl_queue") == ["queued"]


def test_a_key_of_another_kind_is_found(system: DamagedLedger, broker: Broker) -> None:
    """It is not touched, and what else is wrong is found as well."""
    system.client.delete(system.key("rows:undelivered"))
    system.client.set(system.key("rows:undelivered"), "text")
    system.client.set(system.key("job:text"), "text")
    found = {(finding.subject, finding.code) for finding in check(system, broker).findings}
    assert ("text", "unreadable") in found
    assert ("undelivered", "unreadable") in found


@pytest.mark.parametrize(
    "name", ["leases", "index:all", "letters:pending", "order", "fence", "clock", "counters", "quarantine"]
)
def test_a_key_of_the_whole_ledger_of_another_kind_is_found_and_built_again(
    system: DamagedLedger, broker: Broker, name: str
) -> None:
    """From the records and events, which are what counts."""
    system.client.delete(system.key(name))
    system.client.sadd(system.key(name), "text")
    found = check(system, broker)
    assert ("unreadable", name) in {(finding.code, finding.subject) for finding in found.findings}
    assert check(system, broker, repair=True).ok
    assert check(system, broker).findings == []
    assert system.sweep().failed == []


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("clock", "now", "{"), ("clock", "wall", "nan"), ("clock", "now", "9" * 20),
        ("clock", "lease_s", "-1"),
        ("order", None, "many"), ("order", None, "9" * 20), ("fence", None, "-1"), ("fence", None, "1.5"),
        ("counters", "jobs.sdxl_image_fast.completed", "many"), ("claimed:sdxl_queue", "6:order", "many"),
        ("queue_seen", "sdxl_queue", "now"),
    ],
)  # fmt: skip
def test_a_key_of_the_whole_ledger_without_a_number_is_found_and_mended(
    system: DamagedLedger, broker: Broker, name: str, field: str | None, value: str
) -> None:
    """Only the numbers of the key that are damaged are lost."""
    if field is None:
        system.client.set(system.key(name), value)
    else:
        system.client.hset(system.key(name), field, value)
    damaged = [each.subject for each in check(system, broker).findings if each.code == "unreadable"]
    assert damaged == [name]
    repaired = check(system, broker, repair=True)
    assert repaired.ok
    assert check(system, broker).findings == []


class TestMessages:
    """Queued jobs and the broker."""

    def test_a_job_that_has_long_been_due_needs_a_message(
        self, system: DamagedLedger, broker: Broker
    ) -> None:
        """The sweep publishes it again once others overtake it or the queue is empty; neither happened."""
        broker.job_ids.clear()
        system.ledger.mark_published("queued", 1)
        assert check(system, broker).ok, "the sweep has not had its time"
        system.clock.advance(61)
        (finding,) = check(system, broker).findings
        assert (finding.code, finding.subject) == ("message", "queued")
        assert check(system, broker, repair=True).ok
        assert broker.published == ["queued"]

    def test_a_message_that_is_just_taken_is_not_missed(self, system: DamagedLedger, broker: Broker) -> None:
        """Its worker claims the job before the second look."""
        broker.job_ids.clear()
        system.clock.advance(100)
        broker.after_reading = lambda: (
            system.ledger.claim("queued", 1, worker_id="w", lease_s=10, token="t") and None
        )
        assert check(system, broker).findings == []

    def test_entries_that_are_no_messages_are_found(self, system: DamagedLedger, broker: Broker) -> None:
        """Raw JSON in a queue's list would be dropped by a worker."""
        broker.foreign = 2
        (finding,) = check(system, broker).findings
        assert (finding.subject, finding.detail) == ("sdxl_queue", "2 entries are no messages of ours")


def test_work_that_goes_on_is_not_taken_for_damage(system: DamagedLedger, broker: Broker) -> None:
    """Jobs are submitted, claimed, ended and delivered while the check runs."""
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            claim = system.claim(f"live{number}")
            system.ledger.step(claim, progress=50)
            system.ledger.end(claim, outcome=DONE)
            event = system.ledger.lease_event(claim.job_id, lease_s=5, token=f"t{number}")
            assert event is not None
            system.ledger.mark_delivered(event, status=200)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            assert check(system, broker).findings == []
            assert check(system, broker, repair=True).findings == []
    finally:
        stop.set()
        thread.join()
