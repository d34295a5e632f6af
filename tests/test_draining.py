"""The drain of a stopping worker, without the worker: what it writes, and when it stops the process."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ourvidz.draining import FIRST_LOOK_S, Drain
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.liveness import registration
from ourvidz.records.record import NO_STAGE, PREEMPTED, WAITING_FOR_GPU, Verdict
from ourvidz.settings import load_settings
from ourvidz.testing import Eager
from tests.factories import image_job, worker

WORKER = "sdxl@host-gpu0"


@pytest.fixture
def ledger(ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger with the worker and its running job `a`; nothing is published."""
    monkeypatch.setattr("ourvidz.dispatch.workers.publish", lambda record: True)
    ledger = ourvidz_eager.control.ledger
    ledger.heartbeat(worker(id=WORKER))
    ledger.register(image_job("a"), priority=6)
    assert ledger.claim("a", 1, worker_id=WORKER, lease_s=60, token="t")
    return ledger


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the process would stop."""
    stopped = threading.Event()
    monkeypatch.setattr("ourvidz.draining.stop_process", stopped.set)
    return stopped


def test_a_draining_worker_keeps_its_job_and_claims_no_other(
    ledger: Ledger, stopped: threading.Event
) -> None:
    """The running task may claim companions, and would be stopped in the middle of their texts."""
    drain = Drain(WORKER, limit_s=3600)
    drain.start()
    ledger.register(image_job("b"), priority=6)
    while not ledger.workers()[0].draining:
        continue
    assert ledger.claim("b", 1, worker_id=WORKER, lease_s=60, token="u") is None
    record = ledger.get("a")
    assert record is not None
    assert (record.status, stopped.is_set()) == ("processing", False)
    drain.hand_back()
    assert stopped.wait(10)


def test_after_its_limit_the_job_is_queued_again_uncounted(ledger: Ledger, stopped: threading.Event) -> None:
    """Before the process stops: a child that dies would cost the job an attempt."""
    Drain(WORKER, limit_s=0.01).start()
    assert stopped.wait(10)
    record = ledger.get("a")
    assert record is not None
    assert (record.status, record.attempt, record.failures) == ("queued", 0, {})


def wait_for_gpu(ledger: Ledger, job_id: str, token: str, stage: str = WAITING_FOR_GPU) -> None:
    """Let the attempt with this token report that it waits for memory."""
    claim = ledger.claim(job_id, 1, worker_id=WORKER, lease_s=60, token=token)
    assert claim is not None
    assert ledger.step(claim, stage=stage) is Verdict.CONTINUE


def test_a_job_that_waits_for_the_gpu_is_handed_back_at_once(
    ledger: Ledger, stopped: threading.Event
) -> None:
    """It computes nothing, and another worker may have free memory; the attempt does not count."""
    wait_for_gpu(ledger, "a", "t")
    Drain(WORKER, limit_s=3600).start()
    assert stopped.wait(10)
    record = ledger.get("a")
    assert record is not None
    assert (record.status, record.attempt, record.failures) == ("queued", 0, {})


def test_a_job_that_waits_for_a_moment_is_waited_for(
    ledger: Ledger, stopped: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two stages a model's own part leaves, and then the job goes on."""
    wait_for_gpu(ledger, "a", "t")
    look, looks = Drain._is_waiting_for_gpu, []

    def look_and_go_on(drain: Drain) -> bool:
        looks.append(look(drain))
        wait_for_gpu(ledger, "a", "t", stage=NO_STAGE)
        return looks[-1]

    monkeypatch.setattr(Drain, "_is_waiting_for_gpu", look_and_go_on)
    drain = Drain(WORKER, limit_s=3600)
    drain.start()
    assert not stopped.wait(3 * FIRST_LOOK_S)
    assert looks[:2] == [True, False]
    drain.hand_back()
    assert stopped.wait(10)


def test_a_job_that_computes_is_waited_for_though_another_one_waits(
    ledger: Ledger, stopped: threading.Event
) -> None:
    """A clip that has yielded waits, and the image beside it computes."""
    ledger.register(image_job("b"), priority=6)
    wait_for_gpu(ledger, "b", "u")
    drain = Drain(WORKER, limit_s=3600)
    drain.start()
    assert not stopped.wait(2 * FIRST_LOOK_S)
    wait_for_gpu(ledger, "a", "t", stage=PREEMPTED)
    assert stopped.wait(10)
    held = [ledger.get(job_id) for job_id in "ab"]
    assert [record.status for record in held if record] == ["queued", "queued"]


def test_a_ledger_that_is_away_does_not_keep_the_process_alive(
    ledger: Ledger, stopped: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor would kill it; the lease runs out instead."""

    def away(*_: Any) -> Any:
        raise WorkerUnavailable("the job store cannot be reached")

    monkeypatch.setattr(ledger, "set_draining", away)
    monkeypatch.setattr(ledger, "leased_by", away)
    Drain(WORKER, limit_s=0.01).start()
    assert stopped.wait(10)


@pytest.mark.parametrize("state", ["starting", "failed"])
def test_a_worker_that_loads_its_models_stops_at_once(
    ledger: Ledger, stopped: threading.Event, state: str
) -> None:
    """It has no job, and a large checkpoint takes minutes."""
    ledger.heartbeat(worker(id="sdxl@loading", state=state, models=()))
    Drain("sdxl@loading", limit_s=3600).start()
    assert stopped.wait(10)
    record = ledger.get("a")
    assert record is not None
    assert record.status == "processing"


def test_a_draining_worker_ends_its_registration(
    ledger: Ledger, stopped: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the begin of the drain, which may take minutes."""
    pod = load_settings(_env_file=None, RUNPOD_POD_ID="k2x9", SUPABASE_URL="https://abc.supabase.co")
    made = registration.of_worker(pod, "sdxl", models={})
    ledger.heartbeat(worker(id=WORKER, detail={"registration": registration.as_detail(made)}))
    registration.update_registrations(ledger)
    monkeypatch.setattr(registration, "is_enabled", lambda settings: True)
    drain = Drain(WORKER, limit_s=0.01)
    drain.start()
    assert stopped.wait(10)
    (event,) = [event for event in ledger.list_events("pending") if event.is_registration]
    assert event.kind == "gone"


def test_a_record_that_cannot_be_read_keeps_no_worker_from_stopping(
    ledger: Ledger, stopped: threading.Event
) -> None:
    """The thread that drains would end with an error, and the process would never stop."""
    ledger.register(image_job("b"), priority=6)
    assert ledger.claim("b", 1, worker_id=WORKER, lease_s=60, token="u")
    ledger._connection.client.set(ledger._keys.job("b"), "damaged")
    Drain(WORKER, limit_s=0.3).start()
    assert stopped.wait(10)
