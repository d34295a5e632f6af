"""The handlers of Celery's signals, called as Celery calls them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals as celery_signals
from celery.app.task import Context

from ourvidz import dispatch, signals
from ourvidz.errors import JobTimeout
from ourvidz.ledger.store import Ledger
from ourvidz.liveness import registration
from ourvidz.records.record import Claim, Record
from ourvidz.settings import load_settings
from ourvidz.testing import Eager
from ourvidz.wiring import control
from tests.factories import image_job, worker

WORKER = "sdxl@host-gpu0"
TASK = "ourvidz.sdxl.generate"


@pytest.fixture
def ledger(ourvidz_eager: Eager) -> Ledger:
    return ourvidz_eager.control.ledger


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the jobs that were published again."""
    ids: list[str] = []
    monkeypatch.setattr("ourvidz.dispatch.workers.publish", lambda record: ids.append(record.job_id) or True)
    return ids


@pytest.fixture
def heartbeat(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A test double of the running heartbeat; `states` has the states that were set."""
    states: list[str] = []
    double = SimpleNamespace(states=states, set_state=states.append, stop=lambda: states.append("stopped"))
    monkeypatch.setattr(signals, "_heartbeat", double)
    return double


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the parent of the worker."""
    monkeypatch.setattr(signals, "_parent_id", WORKER)


def task(name: str = TASK) -> SimpleNamespace:
    """A task with the request of one received message."""
    return SimpleNamespace(name=name, request=Context(task=name, hostname=WORKER, is_eager=False))


def register(ledger: Ledger, job_id: str = "a") -> Record:
    return ledger.register(image_job(job_id), priority=6).record


def claim_job(ledger: Ledger, job_id: str = "a", worker_id: str = WORKER) -> Claim:
    record = register(ledger, job_id)
    claim = ledger.claim(job_id, record.run, worker_id=worker_id, lease_s=60, token=job_id)
    assert claim is not None
    return claim


class TestTasks:
    def test_a_task_claims_its_job(self, ledger: Ledger, heartbeat: SimpleNamespace) -> None:
        """Before the body: the caller hears of the start while libraries are still being loaded."""
        record, running = register(ledger), task()
        signals.open_attempt(task=running, args=(dispatch.message(record),))
        current = ledger.get("a")
        assert current is not None
        assert (current.status, current.worker_id) == ("processing", WORKER)
        signals.close_attempt(task=running)
        assert heartbeat.states == ["busy", "idle"]

    def test_an_argument_sent_by_name_is_claimed_too(self, ledger: Ledger) -> None:
        """`send_task(..., kwargs={"message": payload})`: the caller hears of the start as the job begins."""
        payload = {"id": "b", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
        signals.open_attempt(task=task(), args=(), kwargs={"message": payload})
        record = ledger.get("b")
        assert record is not None
        assert record.status == "processing"

    @pytest.mark.parametrize("name", ["ourvidz.chat.enhance", "celery.ping"])
    def test_other_tasks_claim_nothing(self, ledger: Ledger, heartbeat: SimpleNamespace, name: str) -> None:
        """Enhancements have their own lease."""
        record, other = register(ledger), task(name)
        signals.open_attempt(task=other, args=(dispatch.message(record),))
        signals.recover_lost_child(sender=other, exception=WorkerLostError(), args=())
        signals.close_attempt(task=other)
        current = ledger.get("a")
        assert current is not None
        assert current.status == "queued"
        assert heartbeat.states == []


@pytest.mark.usefixtures("parent")
class TestLostChild:
    def test_all_jobs_of_a_lost_child_are_queued_again(self, ledger: Ledger, published: list[str]) -> None:
        """A task may run a batch of text jobs, all of which are recovered; jobs of other workers are not."""
        claim_job(ledger, "a")
        claim_job(ledger, "b")
        claim_job(ledger, "c", worker_id="sdxl@another")
        signals.recover_lost_child(sender=task(), exception=WorkerLostError())
        statuses = [ledger.get(job_id).status for job_id in ("a", "b", "c")]  # type: ignore[union-attr]
        assert statuses == ["queued", "queued", "processing"]
        assert sorted(published) == ["a", "b"]

    def test_a_job_over_its_hard_limit_fails_as_timed_out(self, ledger: Ledger, published: list[str]) -> None:
        """It is not counted as a lost worker, since another attempt would take as long."""
        claim_job(ledger, "a")
        signals.recover_lost_child(sender=task(), exception=TimeLimitExceeded(180))
        ended = ledger.get("a")
        assert ended is not None
        assert ended.outcome is not None
        assert ended.outcome.error is not None
        assert (ended.status, ended.outcome.error.code) == ("failed", JobTimeout.code)
        assert published == []

    def test_a_job_of_another_worker_is_not_ended(self, ledger: Ledger, published: list[str]) -> None:
        """The child may have died with a duplicate message of a job that another worker runs."""
        claim_job(ledger, "a", worker_id="sdxl@another")
        signals.recover_lost_child(sender=task(), exception=TimeLimitExceeded(180))
        current = ledger.get("a")
        assert current is not None
        assert (current.status, published) == ("processing", [])

    @pytest.mark.parametrize("error", [TimeLimitExceeded(180), WorkerLostError()])
    def test_the_texts_of_a_batch_run_again_uncharged_and_alone(
        self, ledger: Ledger, published: list[str], error: Exception
    ) -> None:
        """Any of them may have stopped or killed the child."""
        claim_job(ledger, "a")
        record = register(ledger, "b")
        assert ledger.claim("b", record.run, worker_id=WORKER, lease_s=60, token="b", beside="a")
        signals.recover_lost_child(sender=task(), exception=error)
        for job_id in ("a", "b"):
            current = ledger.get(job_id)
            assert current is not None
            assert (current.status, current.attempt, current.failures) == ("queued", 0, {})
            assert current.alone
        assert sorted(published) == ["a", "b"]

    def test_a_cancelled_job_over_its_hard_limit_ends_cancelled(
        self, ledger: Ledger, published: list[str]
    ) -> None:
        """Its caller asked for that first."""
        claim_job(ledger, "a")
        ledger.request_cancel("a")
        signals.recover_lost_child(sender=task(), exception=TimeLimitExceeded(180))
        current = ledger.get("a")
        assert current is not None
        assert current.status == "cancelled"


@pytest.mark.usefixtures("parent")
class TestRevokedMessages:
    def revoke(self, record: Record) -> None:
        request = SimpleNamespace(args=(dispatch.message(record),))
        signals.cancel_revoked(sender=task(), request=request)

    def test_revoking_a_message_cancels_its_queued_job(self, ledger: Ledger) -> None:
        """Operators can cancel jobs with `revoke`, for example in Flower."""
        self.revoke(register(ledger))
        current = ledger.get("a")
        assert current is not None
        assert current.status == "cancelled"

    def test_revoking_with_terminate_ends_the_running_job(self, ledger: Ledger) -> None:
        """`terminate` has killed the child, so no step would see the cancel flag."""
        self.revoke(claim_job(ledger).record)
        current = ledger.get("a")
        assert current is not None
        assert current.status == "cancelled"

    def test_revoking_a_message_of_an_earlier_run_changes_nothing(self, ledger: Ledger) -> None:
        """Celery remembers revoked ids for hours, which must not cancel a retried job."""
        first = register(ledger)
        dispatch.cancel("a")
        ledger.reopen("a", priority=6)
        self.revoke(first)
        current = ledger.get("a")
        assert current is not None
        assert (current.status, current.run) == ("queued", 2)

    def test_revoking_a_message_of_a_deleted_or_ended_job_raises_nothing(self, ledger: Ledger) -> None:
        """Celery would log a traceback."""
        record = register(ledger)
        dispatch.cancel("a")
        self.revoke(record)
        ledger_record = ledger.get("a")
        assert ledger_record is not None
        assert ledger_record.status == "cancelled"
        signals.cancel_revoked(sender=task(), request=SimpleNamespace(args=({"v": 1, "id": "z", "run": 1},)))


class TestWorkerStart:
    @pytest.fixture
    def as_worker(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
        """Returns a function that makes this process the worker with the given name."""
        monkeypatch.setattr(signals, "_heartbeat", None)
        settings = SimpleNamespace(
            worker=None,
            gpu="0",
            beats_dir=None,
            presence_s=15.0,
            broker_prefix="ourvidz:broker:",
            worker_id=lambda name: f"{name}@host-gpu0",
        )
        monkeypatch.setattr(signals, "settings", lambda: settings)
        monkeypatch.setattr("ourvidz.warmup.settings", lambda: settings)
        monkeypatch.setattr("ourvidz.wiring.signing.signer", lambda settings: None)
        monkeypatch.setattr(dispatch, "start_consuming", lambda worker_id: None)
        yield lambda name: setattr(settings, "worker", name)
        if signals._heartbeat is not None:
            signals._heartbeat.stop()

    def test_a_child_loads_its_models_before_its_first_job(
        self, ledger: Ledger, as_worker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first job does not wait for the models; the worker record lists the loaded models."""
        as_worker("sdxl")
        models = SimpleNamespace(warm=lambda: None, info=lambda: {"sdxl": {"name": "tiny-sdxl"}})
        monkeypatch.setattr("ourvidz.wiring.loading.models", lambda settings, family: models)
        signals.warm_up()
        (row,) = ledger.workers()
        assert (row.id, row.state, row.models, row.draining) == (WORKER, "idle", ("sdxl",), False)
        assert row.detail == {"info": {"sdxl": {"name": "tiny-sdxl"}}}

    def test_a_child_reports_its_metrics_and_its_status(
        self,
        ourvidz_eager: Eager,
        ledger: Ledger,
        as_worker: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Heartbeats have the counts of what was sent; the status line has the memory of the GPU."""
        as_worker("sdxl")
        memory = {"vram_used": 812, "vram_total": 49140, "vram_utilization": 0.017, "vram_used_gb": 0.79}
        models = SimpleNamespace(warm=lambda: None, info=dict, memory=lambda: memory)
        monkeypatch.setattr("ourvidz.wiring.loading.models", lambda settings, family: models)
        monkeypatch.setattr("ourvidz.wiring.loading.loaded", lambda settings, family: models)
        read: list[Callable[[], dict[str, Any]]] = []
        line = SimpleNamespace(start=lambda: None)
        monkeypatch.setattr(signals, "StatusLine", lambda reads, period_s: read.append(reads) or line)
        changes = {"metrics_url": "http://127.0.0.1:9/", "status_s": 5.0}
        settings = ourvidz_eager.control.settings.model_copy(update=changes)
        with control.using(replace(ourvidz_eager.control, settings=settings)):
            signals.warm_up()
            assert ledger.workers()[0].metrics_counts == {"sent": 0, "dropped": 0}
            status = read[0]()
            signals.send_last_metrics()
        assert {name: status[name] for name in ("state", "jobs_completed", "vram_used", "vram_total")} == {
            "state": "idle",
            "jobs_completed": 0,
            "vram_used": 812,
            "vram_total": 49140,
        }

    @pytest.mark.parametrize("name", ["io", None])
    def test_a_child_of_another_process_loads_nothing(
        self, ledger: Ledger, as_worker: Callable[[str | None], None], name: str | None
    ) -> None:
        """Only GPU workers hold models."""
        as_worker(name)
        signals.warm_up()
        assert ledger.workers() == []

    def test_a_parent_consumes_no_paused_queue(
        self, ledger: Ledger, as_worker: Callable[[str], None]
    ) -> None:
        """Pauses are stored in the ledger and are kept over restarts."""
        as_worker("sdxl")
        ledger.set_paused("sdxl_queue", True)
        cancelled: list[str] = []
        sender = SimpleNamespace(hostname=WORKER, cancel_task_queue=cancelled.append)
        signals.announce_parent(sender=sender)
        assert cancelled == ["sdxl_queue"]

    @pytest.mark.parametrize("state", ["idle", "failed"])
    def test_a_drained_or_failed_worker_consumes_nothing(
        self, ledger: Ledger, as_worker: Callable[[str], None], state: str
    ) -> None:
        """The child may fail to load its models before the parent is ready."""
        as_worker("sdxl")
        ledger.heartbeat(worker(id=WORKER, state=state))
        ledger.set_draining(WORKER, state == "idle")
        cancelled: list[str] = []
        sender = SimpleNamespace(hostname=WORKER, cancel_task_queue=cancelled.append)
        signals.announce_parent(sender=sender)
        assert sorted(cancelled) == ["chat_queue", "sdxl_queue", "wan_queue"]

    @pytest.mark.parametrize("started_with", [signal.SIG_DFL, signal.SIG_IGN])
    def test_a_closed_terminal_stops_a_worker_unless_it_was_started_with_nohup(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, started_with: signal.Handlers
    ) -> None:
        """Celery would start it again in the background, or let it die with its job."""
        monkeypatch.setattr(signals, "_parent_id", None)
        before = signal.getsignal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, started_with)
        try:
            signals.remember_parent_id(sender=WORKER)
            signals.stop_at_hangup()
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)
        assert ignored == (started_with is signal.SIG_IGN)

    def test_a_restart_ends_a_drain(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        """A restarted worker takes jobs again."""
        monkeypatch.setattr(signals, "_parent_id", None)
        ledger.heartbeat(worker(id=WORKER))
        ledger.set_draining(WORKER, True)
        signals.remember_parent_id(sender=WORKER)
        assert not ledger.workers()[0].draining
        assert signals._parent_id == WORKER


class TestWorkerShutdown:
    @pytest.fixture
    def stopped(self, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
        """This process is the parent of a worker with a long drain limit; set once it would stop."""
        stopped = threading.Event()
        monkeypatch.setattr(signals, "_drain", None)
        monkeypatch.setattr(signals, "settings", lambda: SimpleNamespace(worker="sdxl", drain_s=3600.0))
        monkeypatch.setattr("ourvidz.draining.stop_process", stopped.set)
        return stopped

    def ask_to_stop(self, how: str = "Warm") -> None:
        celery_signals.worker_shutting_down.send(sender=WORKER, sig="SIGTERM", how=how, exitcode=0)

    def test_a_second_signal_ends_the_drain(
        self, ledger: Ledger, published: list[str], stopped: threading.Event
    ) -> None:
        """The first one lets the running job finish, however long it takes."""
        claim_job(ledger)
        self.ask_to_stop()
        assert not stopped.wait(0.05)
        self.ask_to_stop()
        assert stopped.wait(10)
        record = ledger.get("a")
        assert record is not None
        assert (record.status, record.attempt, published) == ("queued", 0, ["a"])

    def test_a_cold_shutdown_starts_no_drain(self, ledger: Ledger, stopped: threading.Event) -> None:
        """What it interrupts is handed back when the process ends."""
        self.ask_to_stop(how="Cold")
        assert signals._drain is None

    def test_a_process_without_jobs_does_not_drain(
        self, ledger: Ledger, stopped: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The io worker and the keeper have nothing to hand back."""
        monkeypatch.setattr(signals, "settings", lambda: SimpleNamespace(worker="io"))
        self.ask_to_stop()
        assert signals._drain is None

    def test_a_stopped_worker_is_offline(
        self, ledger: Ledger, heartbeat: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is marked at once, not by missing heartbeats; a parent without a heartbeat marks its child."""
        signals.stop_heartbeat(sender=SimpleNamespace(hostname=WORKER))
        assert heartbeat.states == ["stopped"]
        monkeypatch.setattr(signals, "_heartbeat", None)
        ledger.heartbeat(worker(id=WORKER))
        signals.stop_heartbeat(sender=SimpleNamespace(hostname=WORKER))
        assert ledger.workers()[0].state == "offline"

    def test_a_stopped_worker_ends_its_registration(
        self, ourvidz_eager: Eager, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At once; a keeper would need the presence time."""
        pod = load_settings(_env_file=None, RUNPOD_POD_ID="k2x9", SUPABASE_URL="https://abc.supabase.co")
        monkeypatch.setattr(signals, "_heartbeat", None)
        made = registration.of_worker(pod, "sdxl", models={})
        ledger.heartbeat(worker(id=WORKER, detail={"registration": registration.as_detail(made)}))
        registration.update_registrations(ledger)
        with control.using(replace(ourvidz_eager.control, settings=pod)):
            signals.stop_heartbeat(sender=SimpleNamespace(hostname=WORKER))
        (event,) = ledger.list_events("pending")
        assert event.kind == "gone"
