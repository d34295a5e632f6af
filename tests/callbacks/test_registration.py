"""Registrations of workers at a backend that keeps the table of the functions in the field."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from campaigns.backend import CHAT, OTHERS, Backend, serve
from ourvidz.callbacks import payload
from ourvidz.callbacks.delivery import CallbackSender, Lease
from ourvidz.ledger.store import Ledger
from ourvidz.liveness import registration
from ourvidz.recovery.inspection import check_events, check_jobs
from ourvidz.recovery.remains import remove_remains
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring import control
from tests.factories import ManualClock, worker

KEY = "a-service-key"


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A backend with the table of the functions that register workers."""
    with serve() as made:
        yield made


@dataclass
class Fleet:
    """Workers on some pods that share a ledger, a keeper, and an io process that may die."""

    ledger: Ledger
    clock: ManualClock
    backend: Backend
    refresh_s: float | None = None
    alive: dict[str, Any] = field(default_factory=dict)
    """The workers that send heartbeats by id."""

    def __post_init__(self) -> None:
        self.sender = CallbackSender(self.ledger, control.target(self.settings("pod")), rng=random.Random(1))

    def settings(self, pod: str) -> Settings:
        return load_settings(
            _env_file=None, RUNPOD_POD_ID=pod, SUPABASE_URL=self.backend.url, SUPABASE_SERVICE_KEY=KEY
        )

    def url(self, pod: str) -> str:
        return f"https://{pod}-7860.proxy.runpod.net"

    def start(self, family: str, pod: str, number: int = 0, **changes: Any) -> str:
        """Start a worker, or start it again: it loads its models and registers."""
        made = registration.of_worker(self.settings(pod), family, models={family: {}})
        id = f"{family}@{pod}-gpu{number}"
        detail = {"registration": registration.as_detail(made)}
        self.alive[id] = worker(family, id=id, started_at=self.clock(), **{"detail": detail, **changes})
        self.beat()
        registration.update_registrations(self.ledger)
        return id

    def beat(self) -> None:
        for each in self.alive.values():
            self.ledger.heartbeat(each)

    def kill(self, id: str) -> None:
        """SIGKILL: nobody says anything any more."""
        self.alive.pop(id, None)

    def stop(self, id: str) -> None:
        """A clean stop."""
        self.kill(id)
        self.ledger.mark_offline(id)
        registration.update_registrations(self.ledger)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with heartbeats and a keeper's duty every three seconds."""
        until = self.clock() + seconds
        while self.clock() < until:
            self.clock.advance(3)
            self.beat()
            self.ledger.record_sweep(silence_s=600, lease_s=10)
            self.ledger.update_registrations(refresh_s=self.refresh_s)

    def deliver(self) -> None:
        """Deliver what is due."""
        for stream in self.ledger.due_deliveries():
            self.sender.deliver(stream)

    def settle(self) -> None:
        """Let everything come to its end, without further faults."""
        self.backend.fault = lambda: None
        self.deliver()
        # Who is silent is gone after 15 seconds.
        self.pass_time(18)
        for _ in range(200):
            self.deliver()
            self.pass_time(15)
            if not self.ledger.list_events("pending"):
                return
        raise AssertionError(self.ledger.list_events("pending"))

    @property
    def live(self) -> set[tuple[str, str]]:
        return {
            (each.family, self.url(each.id.split("@")[1].split("-gpu")[0])) for each in self.alive.values()
        }


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def fleet(make_ledger: Callable[..., Ledger], clock: ManualClock, backend: Backend) -> Fleet:
    return Fleet(make_ledger(clock=clock), clock, backend)


def test_a_worker_is_registered_in_the_form_of_the_functions_in_the_field(
    fleet: Fleet, backend: Backend
) -> None:
    """The two functions read these fields, and the service key lets the request through."""
    fleet.start("chat", "abc123")
    fleet.start("wan", "abc123")
    fleet.deliver()
    (first, headers, chat), (second, _, wan) = backend.requests
    assert (first, second) == (CHAT, OTHERS)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert {name: chat[name] for name in ("worker_url", "auto_registered", "detection_method")} == {
        "worker_url": "https://abc123-7860.proxy.runpod.net",
        "auto_registered": True,
        "detection_method": "RUNPOD_POD_ID",
    }
    assert (chat["worker_type"], wan["worker_type"]) == ("chat", "wan")
    assert chat["registration_method"] == "chat_worker_self_registration"
    assert chat["capabilities"]["pure_inference"] is True
    assert "chat_enhance" in chat["capabilities"]["job_types"]
    assert chat["timestamp"] == "2027-01-15T08:00:00.000Z"
    assert (chat["status"], chat["worker_id"]) == ("registered", "chat@abc123-gpu0")


def test_workers_that_share_a_url_share_a_record_until_the_last_one_is_gone(
    fleet: Fleet, backend: Backend
) -> None:
    """Two cards in one pod: one of them must not take the other's record away."""
    first, second = (fleet.start("sdxl", "pod", number) for number in range(2))
    fleet.deliver()
    fleet.stop(first)
    fleet.settle()
    assert backend.active == fleet.live == {("sdxl", fleet.url("pod"))}
    fleet.stop(second)
    fleet.settle()
    assert backend.active == set()
    assert backend.requests[-1][2]["status"] == "gone"


def test_a_gone_worker_is_never_sent_with_a_url_to_register(fleet: Fleet, backend: Backend) -> None:
    """The functions in the field know no deregistration: they would register it again."""
    id = fleet.start("wan", "pod")
    fleet.deliver()
    fleet.stop(id)
    fleet.deliver()
    gone = backend.requests[-1][2]
    assert (gone["status"], gone["worker_url"], gone["former_worker_url"]) == ("gone", None, fleet.url("pod"))
    assert gone["sequence"] > backend.requests[0][2]["sequence"]
    assert fleet.ledger.list_events("dead") == [], "their 400 is an answer that an operator need not see"


@pytest.mark.parametrize("how", ["killed", "drained", "failed"])
def test_a_worker_that_takes_no_jobs_is_gone(fleet: Fleet, backend: Backend, how: str) -> None:
    """The keeper notices what the worker itself cannot report."""
    id = fleet.start("sdxl", "pod")
    fleet.deliver()
    if how == "killed":
        fleet.kill(id)
        fleet.pass_time(12)
        assert fleet.ledger.list_events("pending") == [], "it may only be slow"
    elif how == "drained":
        fleet.ledger.set_draining(id, True)
    else:
        fleet.alive[id] = worker("sdxl", id=id, state="failed", detail=fleet.alive[id].detail)
    fleet.pass_time(6)
    fleet.deliver()
    assert backend.active == set()
    if how != "killed":
        fleet.ledger.set_draining(id, False)
        fleet.start("sdxl", "pod")
        fleet.settle()
        assert backend.active == {("sdxl", fleet.url("pod"))}


def test_a_newer_registration_replaces_an_undelivered_one(fleet: Fleet, backend: Backend) -> None:
    """While the backend was down a worker came, left and came: the backend hears of the last."""
    backend.fault = lambda: "refused"
    for _ in range(3):
        id = fleet.start("sdxl", "pod")
        fleet.deliver()
        fleet.stop(id)
        fleet.deliver()
    fleet.start("sdxl", "pod")
    assert len(fleet.ledger.list_events("pending")) == 1
    fleet.settle()
    assert [document["status"] for _, _, document in backend.requests] == ["registered"]


def test_an_older_departure_that_is_being_sent_comes_before_the_new_registration(
    fleet: Fleet, backend: Backend
) -> None:
    """A process that holds it may still post it: the new registration waits for the end of its lease."""
    id = fleet.start("sdxl", "pod")
    fleet.deliver()
    fleet.stop(id)
    (stream,) = fleet.ledger.due_deliveries()
    held = fleet.ledger.lease_event(stream, lease_s=15, token="of a process that is slow")
    assert held is not None
    assert held.kind == "gone"
    fleet.start("sdxl", "pod")
    assert fleet.ledger.due_deliveries() == []
    fleet.sender._send(Lease(held, time.monotonic()))
    fleet.settle()
    assert [document["status"] for _, _, document in backend.requests] == ["registered", "gone", "registered"]
    assert backend.active == fleet.live


def test_a_registration_is_tried_until_the_shim_answers(fleet: Fleet, backend: Backend) -> None:
    """The function asks the worker's `/health` first, and answers 400 while the shim starts."""
    backend.down_shims = {fleet.url("pod")}
    fleet.start("wan", "pod")
    for _ in range(5):
        fleet.deliver()
        fleet.pass_time(3)
    assert backend.cells == {}
    backend.down_shims = set()
    fleet.settle()
    assert backend.cells == {OTHERS: fleet.url("pod")}


def test_a_pod_that_is_refused_delays_no_other(fleet: Fleet, backend: Backend) -> None:
    """Each record has a stream of its own."""
    backend.down_shims = {fleet.url("broken")}
    fleet.start("wan", "broken")
    fleet.deliver()
    fleet.start("wan", "pod")
    fleet.deliver()
    assert backend.cells == {OTHERS: fleet.url("pod")}


def test_a_backend_with_one_url_gets_that_of_a_survivor(fleet: Fleet, backend: Backend) -> None:
    """It cannot be told who has left, only who is there."""
    fleet.start("sdxl", "old")
    id = fleet.start("sdxl", "new")
    fleet.deliver()
    fleet.kill(id)
    backend.cells[OTHERS] = fleet.url("new")
    fleet.settle()
    assert backend.cells == {OTHERS: fleet.url("old")}


def test_a_late_request_of_a_dead_worker_is_overwritten(fleet: Fleet, backend: Backend) -> None:
    """Its post was under way when it died: the survivor is registered again when that can come no more."""
    fleet.start("sdxl", "old")
    fleet.deliver()
    id = fleet.start("sdxl", "new")
    (stream,) = fleet.ledger.due_deliveries()
    held = fleet.ledger.lease_event(stream, lease_s=60, token="of a process that is slow")
    assert held is not None
    fleet.kill(id)
    fleet.pass_time(30)
    fleet.deliver()
    fleet.sender._send(Lease(held, time.monotonic()))
    assert backend.cells == {OTHERS: fleet.url("new")}
    fleet.settle()
    assert backend.cells == {OTHERS: fleet.url("old")}


def test_a_registration_is_sent_again_in_intervals(fleet: Fleet, backend: Backend) -> None:
    """A backend that lost its table, or a late request that overwrote it, is right again after a while."""
    fleet.refresh_s = 300
    fleet.start("sdxl", "pod")
    fleet.deliver()
    backend.cells.clear()
    fleet.pass_time(290)
    assert fleet.ledger.list_events("pending") == []
    fleet.pass_time(12)
    fleet.deliver()
    assert backend.cells == {OTHERS: fleet.url("pod")}
    assert len(backend.requests) == 2
    delivered = [event.kind for event in fleet.ledger.list_events("delivered")]
    assert delivered == ["registered"], "of repetitions nothing is kept"


def test_each_registration_that_was_given_up_is_sent_again(fleet: Fleet, backend: Backend) -> None:
    """While a backend refused everything, all were given up: each live worker must be known afterwards, not
    only the newest of its type. A dead letter is replaced by the repetition."""
    fleet.refresh_s = 300
    for pod in ("one", "two", "three"):
        fleet.start("sdxl", pod)
    gone = fleet.start("sdxl", "four")
    for event in fleet.ledger.list_events("pending"):
        fleet.ledger.dead_letter(event, status=404, error="HTTP 404")
    fleet.kill(gone)
    fleet.pass_time(290)
    assert backend.requests == []
    fleet.pass_time(12)
    fleet.settle()
    assert backend.active == fleet.live
    assert len(fleet.live) == 3
    assert [event.job_id.split()[1] for event in fleet.ledger.list_events("dead")] == []
    sent = len(backend.requests)
    fleet.pass_time(302)
    fleet.deliver()
    assert len(backend.requests) == sent + 1, "only the newest, as before"


def test_after_an_outage_of_the_ledger_nobody_is_gone_at_once(fleet: Fleet) -> None:
    """Live workers could not be heard of meanwhile."""
    fleet.start("sdxl", "pod")
    fleet.deliver()
    fleet.pass_time(3)
    fleet.clock.advance(700)
    assert fleet.ledger.update_registrations() == 0
    fleet.beat()
    fleet.pass_time(30)
    assert fleet.ledger.list_events("pending") == []


def test_a_registration_goes_to_the_functions_of_this_installation_only(
    fleet: Fleet, backend: Backend
) -> None:
    """The ledger is no reason to send the service key elsewhere."""
    id = fleet.start("sdxl", "pod")
    fleet.deliver()
    detail = json.loads(json.dumps(fleet.alive[id].detail))
    detail["registration"]["callback_url"] = f"{backend.url}/functions/v1/elsewhere"
    fleet.start("sdxl", "pod", detail=detail)
    fleet.deliver()
    assert len(backend.requests) == 1
    (dead,) = fleet.ledger.list_events("dead")
    assert dead.last_error == "the URL is not that of a function that registers workers"


def test_a_damaged_heartbeat_or_record_stops_no_registration(fleet: Fleet, backend: Backend) -> None:
    """One worker's row, or a key of another type, must not hide the others."""
    fleet.ledger.heartbeat(worker("wan", id="wan@odd", detail={"registration": {"worker_type": 5}}))
    fleet.start("sdxl", "pod")
    client, prefix = fleet.ledger._connection.client, fleet.ledger._keys.prefix
    client.hset(f"{prefix}registrations", "wan https://x", "[not JSON")
    fleet.settle()
    assert backend.active == fleet.live
    client.delete(f"{prefix}registrations")
    client.set(f"{prefix}registrations", "of another type")
    fleet.settle()
    assert backend.active == fleet.live


def test_the_check_of_the_ledger_finds_nothing_wrong_with_registrations(fleet: Fleet) -> None:
    """Their events belong to no job, pending or settled; the keeper's housekeeping leaves them alone."""
    fleet.start("sdxl", "pod")
    fleet.deliver()
    fleet.backend.fault = lambda: "refused"
    fleet.start("wan", "pod")
    fleet.deliver()
    (event,) = fleet.ledger.list_events("pending")
    for _ in range(2):
        events, jobs = sorted(fleet.ledger.event_ids()), sorted(fleet.ledger.job_ids())
        assert list(check_events(fleet.ledger, events, repair=True)) == []
        assert list(check_jobs(fleet.ledger, jobs, repair=True)) == []
        assert fleet.ledger.unreadable_event(event.job_id) is None
        fleet.ledger.dead_letter(event, status=404, error="HTTP 404")
    assert remove_remains(fleet.ledger) == 0
    fleet.ledger.purge(older_than_s=0)
    assert len(fleet.ledger.list_events("delivered")) == 1
    assert fleet.ledger.list_events("dead") == [], "they are kept as long as those of jobs"


@pytest.mark.parametrize("seed", range(12))
def test_there_is_one_active_record_for_each_live_worker_after_any_sequence_of_kills(
    fleet: Fleet, backend: Backend, seed: int
) -> None:
    """Pods and workers die and come back while requests are refused, their answers are lost, and io dies."""
    rng = random.Random(seed)
    fleet.refresh_s = rng.choice([None, 60])
    pods = [f"pod{number}" for number in range(3)]
    names = [(family, pod, number) for family in ("sdxl", "wan", "chat") for pod in pods for number in (0, 1)]
    backend.fault = lambda: rng.choice([None, None, "refused", "lost"])
    for _ in range(40):
        what = rng.choice(
            ["start", "start", "kill", "stop", "pod dies", "time", "io dies", "deliver", "deliver"]
        )
        family, pod, number = rng.choice(names)
        id = f"{family}@{pod}-gpu{number}"
        if what == "start":
            backend.down_shims.discard(fleet.url(pod))
            fleet.start(family, pod, number)
        elif what == "kill":
            fleet.kill(id)
        elif what == "stop" and id in fleet.alive:
            fleet.stop(id)
        elif what == "pod dies":
            backend.down_shims.add(fleet.url(pod))
            for each in [each for each in fleet.alive if f"@{pod}-" in each]:
                fleet.kill(each)
        elif what == "time":
            fleet.pass_time(rng.choice([3, 18, 60]))
        elif what == "io dies":
            for stream in fleet.ledger.due_deliveries()[:2]:
                event = fleet.ledger.lease_event(stream, lease_s=15, token=f"{rng.random()}")
                if event is not None and rng.random() < 0.5:
                    fleet.sender._post(event, event.callback_url or "", _body(event))
        else:
            fleet.deliver()
    fleet.settle()
    assert backend.active == fleet.live
    for function in (CHAT, OTHERS):
        urls = {url for family, url in fleet.live if (family == "chat") == (function == CHAT)}
        assert not urls or backend.cells[function] in urls


def _body(event: Any) -> bytes:
    """The body of a post whose result nobody records."""
    return payload.encode(payload.build(event, worker_version="1"))
