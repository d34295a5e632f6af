"""What a sweep cannot read does not stop it: it is set aside, shown, and left for a release that can."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from tests.recovery.corruption import DamagedLedger, damaged_ledger

Damage = Callable[[DamagedLedger, str], object]


@pytest.fixture
def system() -> Iterator[DamagedLedger]:
    with damaged_ledger() as made:
        made.sweep()
        yield made


def set_field(name: str, value: str) -> Damage:
    return lambda system, job_id: system.client.hset(system.key(f"job:{job_id}"), name, value)


def remove_field(name: str) -> Damage:
    return lambda system, job_id: system.client.hdel(system.key(f"job:{job_id}"), name)


def replace_by_string(system: DamagedLedger, job_id: str) -> None:
    system.client.delete(system.key(f"job:{job_id}"))
    system.client.set(system.key(f"job:{job_id}"), "text")


UNREADABLE: dict[str, Damage] = {
    "a newer version": set_field("v", "99"),
    "an unknown type": set_field("type", "sdxl_image_holographic"),
    "an unknown status": set_field("status", "dreaming"),
    "no number": set_field("fence", "many"),
    "no JSON": set_field("facts", "{"),
    "an undecodable outcome": set_field("outcome", '{"status": "completed", "assets": 7}'),
    "a missing field": remove_field("queued_at"),
    "no version": remove_field("v"),
    "a time that no index takes": set_field("queued_at", "nan"),
    "a number that no counter goes on from": set_field("fence", "9" * 30),
    "another kind of key": replace_by_string,
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_processing_record_does_not_stop_recovery(system: DamagedLedger, what: str) -> None:
    """The jobs of dead workers behind it are queued again, and it is set aside untouched."""
    system.claim("bad")
    system.claim("good")
    UNREADABLE[what](system, "bad")
    before = system.client.dump(system.key("job:bad"))
    report = system.sweep(after_s=11)
    assert (report.recovered, report.quarantined, report.failed) == (1, 1, [])
    assert system.status("good") == "queued"
    assert [entry.job_id for entry in system.ledger.quarantined()] == ["bad"]
    assert system.client.dump(system.key("job:bad")) == before
    assert system.sweep().quarantined == 0, "it is met once, not at every sweep"


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_queued_record_does_not_stop_the_queue(system: DamagedLedger, what: str) -> None:
    """Those behind it are published."""
    system.add("bad")
    system.add("good")
    UNREADABLE[what](system, "bad")
    system.sweep()
    assert system.broker.published == ["good"]
    assert system.ledger.quarantine_size() == 1


@pytest.mark.parametrize("damage", [set_field("lease_until", ""), set_field("lease_until", "nan")])
def test_a_processing_record_without_a_lease_is_set_aside(system: DamagedLedger, damage: Damage) -> None:
    """It never expires, so its job would wait for ever and nobody would know."""
    system.claim("bad")
    damage(system, "bad")
    assert system.sweep(after_s=11).quarantined == 1
    assert system.sweep(after_s=70).failed == []


def test_a_place_that_no_index_takes_does_not_stop_recovery(system: DamagedLedger) -> None:
    """An ended job among the leases is put where it belongs, if that is possible."""
    system.claim("bad")
    system.claim("good")
    for name, value in (("status", "completed"), ("finished_at", "nan")):
        set_field(name, value)(system, "bad")
    assert system.sweep(after_s=11).failed == []
    assert system.status("good") == "queued"


def test_the_purge_of_a_damaged_record_breaks_no_counter(system: DamagedLedger) -> None:
    """The counter of fences is shared: after a value that it cannot go on from, no job could be claimed."""
    system.ledger.end(system.claim("bad"), outcome=Outcome(status="completed"))
    set_field("fence", "9" * 30)(system, "bad")
    while (event := system.ledger.next_event("bad")) is not None:
        system.ledger.mark_delivered(event, status=200)
    system.sweep(after_s=8 * 86400)
    assert system.client.exists(system.key("job:bad")) == 0
    assert system.claim("next").record.status == "processing"


def test_more_unreadable_records_than_a_batch_do_not_hide_those_behind_them(system: DamagedLedger) -> None:
    """A newer release may have queued hundreds of jobs of a new type."""
    for number in range(250):
        system.add(f"new{number}")
        set_field("type", "sdxl_image_holographic")(system, f"new{number}")
    system.add("good")
    report = system.sweep()
    assert (report.quarantined, system.broker.published) == (250, ["good"])


@pytest.mark.parametrize("what", ["a newer version", "no JSON", "a missing field"])
def test_lists_of_jobs_leave_out_what_cannot_be_read(system: DamagedLedger, what: str) -> None:
    """One damaged record must not make every page an error."""
    system.add("bad")
    system.add("good")
    UNREADABLE[what](system, "bad")
    assert [record.job_id for record in system.ledger.records(["bad", "good"])] == ["good"]
    assert [record.job_id for record in system.ledger.page().records] == ["good"]


def test_the_reason_contains_no_value_of_the_record(system: DamagedLedger) -> None:
    """Values may be prompts, and reasons are shown and logged."""
    system.add("bad")
    set_field("facts", "a red circle")(system, "bad")
    system.sweep()
    (entry,) = system.ledger.quarantined()
    assert "circle" not in entry.reason
    assert entry.reason == "its record cannot be decoded: JSONDecodeError"


@pytest.mark.parametrize("status", ["queued", "processing"])
def test_a_record_that_can_be_read_again_goes_on(system: DamagedLedger, status: str) -> None:
    """A keeper of a newer release picks it up, at most a minute later."""
    (system.claim if status == "processing" else system.add)("a")
    set_field("v", "99")(system, "a")
    system.sweep(after_s=11)
    assert system.ledger.quarantine_size() == 1
    set_field("v", "1")(system, "a")
    assert system.sweep(after_s=61).restored == 1
    assert system.ledger.quarantine_size() == 0
    system.sweep()
    assert system.broker.published == ["a"]
    assert system.status("a") == "queued"


def test_a_quarantined_job_that_was_deleted_is_forgotten(system: DamagedLedger) -> None:
    """The quarantine does not grow."""
    system.add("a")
    set_field("v", "99")(system, "a")
    system.sweep()
    system.client.delete(system.key("job:a"))
    system.sweep(after_s=61)
    assert system.ledger.quarantine_size() == 0
    assert not system.client.exists(system.key("quarantine_reasons"))


def test_an_ended_job_of_a_newer_release_does_not_stop_the_purge(system: DamagedLedger) -> None:
    """It is left to its own release; the older ones behind it are deleted."""
    for job_id in ("bad", "good"):
        claim = system.claim(job_id)
        system.ledger.end(claim, outcome=Outcome(status="completed"))
        while event := system.ledger.lease_event(job_id, lease_s=5, token=f"{job_id}{system.clock()}"):
            system.ledger.mark_delivered(event, status=200)
            system.clock.advance(1)
    set_field("v", "99")(system, "bad")
    report = system.sweep(after_s=8 * 86400)
    assert (report.purged, report.failed) == (1, [])
    assert system.client.exists(system.key("job:bad"))
    assert not system.client.exists(system.key("job:good"))


def test_a_damaged_ended_record_is_purged_like_any_other(system: DamagedLedger) -> None:
    """Its time is over; nothing needs to be read."""
    claim = system.claim("a")
    system.ledger.end(claim, outcome=Outcome(status="completed"))
    system.client.delete(system.key("rows:a"))
    remove_field("v")(system, "a")
    assert system.sweep(after_s=8 * 86400).purged == 1


def announced(system: DamagedLedger) -> set[str]:
    """The jobs that io processes are told to deliver now."""
    system.client.delete(system.key("ready"))
    assert system.ledger.announce_due("io@host")
    taken = iter(lambda: system.ledger.take_ready(wait_s=0.01), None)
    return {ready.job_id for ready in taken}


def test_an_unreadable_event_is_not_dispatched_for_ever(system: DamagedLedger) -> None:
    """Each delivery would fail in the io process, every second."""
    for job_id in ("bad", "good"):
        system.claim(job_id)
    (event,) = system.client.zrange(system.key("rows:bad"), 0, -1)
    system.client.hset(system.key(f"event:{event}"), "facts", "{")
    system.sweep()
    assert announced(system) == {"good"}
    assert "event" in system.ledger.quarantined()[0].reason
    system.client.hset(system.key(f"event:{event}"), "facts", "{}")
    system.sweep(after_s=61)
    assert announced(system) == {"bad", "good"}


def test_events_of_another_kind_of_key_do_not_stop_deliveries(system: DamagedLedger) -> None:
    """Those of the other jobs are announced, before the sweep too."""
    for job_id in ("bad", "good"):
        system.claim(job_id)
    system.client.delete(system.key("rows:bad"))
    system.client.set(system.key("rows:bad"), "text")
    assert announced(system) == {"good"}
    assert system.sweep().failed == []
    assert system.members("due") == ["good"]


def test_a_record_that_cannot_be_handled_is_set_aside_for_a_minute(system: DamagedLedger) -> None:
    """Whatever is wrong with it: a mistake of ours must not stop everybody's recovery."""
    system.broker.fail_for = {"bad"}
    system.add("bad")
    system.add("good")
    system.sweep()
    assert system.broker.published == ["good"]
    assert [entry.job_id for entry in system.ledger.quarantined()] == ["bad"]
    system.broker.fail_for = set()
    system.sweep(after_s=61)
    system.sweep()
    assert "bad" in system.broker.published


def test_a_phase_that_fails_is_reported_and_stops_no_other(system: DamagedLedger) -> None:
    """Expired leases, other queues, deliveries and purging go on."""
    system.broker.fail_in = {"wan_queue"}
    system.claim("a")
    system.add("b")
    report = system.sweep(after_s=11)
    assert report.failed == ["wan_queue"]
    assert (report.recovered, report.republished) == (1, 1)
    assert system.client.hget(system.key("sweep"), "failed") == "wan_queue"


def test_an_outage_ends_the_sweep(system: DamagedLedger) -> None:
    """Each further phase would wait for the server again; nothing is set aside."""
    system.add("a")

    def refuse(record: object) -> bool:
        raise WorkerUnavailable("the job store cannot be reached")

    system.broker.publish = refuse  # type: ignore[assignment,method-assign]
    with pytest.raises(WorkerUnavailable):
        system.sweep()
    assert system.ledger.quarantine_size() == 0


class TestDanglingIds:
    """Ids in an index that have no record, or belong elsewhere."""

    @pytest.mark.parametrize("index", ["leases", "queued:sdxl_queue"])
    def test_they_are_removed_when_a_sweep_meets_them(self, system: DamagedLedger, index: str) -> None:
        """More of them than a batch at the front would hide all jobs behind them."""
        names = {f"gone{number}": number - 1000 for number in range(450)}
        system.client.zadd(system.key(index), names)
        system.claim("lost")
        system.add("waiting")
        report = system.sweep(after_s=11)
        assert report.removed == 450
        assert system.status("lost") == "queued"
        assert "waiting" in system.broker.published
        assert not set(system.members(index)) & names.keys()

    def test_a_job_in_the_wrong_index_is_moved(self, system: DamagedLedger) -> None:
        """Its record says where it belongs."""
        claim = system.claim("running")
        system.add("waiting")
        system.client.zadd(system.key("queued:sdxl_queue"), {"running": 1})
        system.client.zadd(system.key("leases"), {"waiting": 1})
        assert system.sweep(after_s=1).removed == 2
        assert system.members("queued:sdxl_queue") == ["waiting"]
        assert system.members("leases") == ["running"]
        assert system.ledger.renew(claim, lease_s=10)

    def test_a_due_job_without_events_is_removed(self, system: DamagedLedger) -> None:
        """Else it would be dispatched at every sweep."""
        system.client.zadd(system.key("due"), {"gone": 1})
        system.client.zadd(system.key("rows:lost"), {"msg_gone": 1})
        system.client.zadd(system.key("due"), {"lost": 1})
        system.sweep()
        assert system.members("due") == []
        assert not system.client.exists(system.key("rows:lost"))

    def test_a_job_whose_events_are_gone_can_still_end(self, system: DamagedLedger) -> None:
        """And its end is delivered."""
        claim = system.claim("a")
        (event,) = system.client.zrange(system.key("rows:a"), 0, -1)
        system.client.delete(system.key(f"event:{event}"))
        assert system.ledger.end(claim, outcome=Outcome(status="completed"))
        pending = system.ledger.lease_event("a", lease_s=5, token="t")
        assert pending is not None
        assert pending.kind == "completed"
