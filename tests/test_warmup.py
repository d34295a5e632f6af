"""Loading of a worker's models: how failures are reported, and when loading is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ourvidz import dispatch, warmup
from ourvidz.errors import ModelLoadError, SettingsError, WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.liveness.availability import WorkerAvailability
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.settings import load_settings
from ourvidz.testing import Eager
from ourvidz.warmup import WarmUp, retry_delay_s
from ourvidz.wiring import control
from tests.factories import image_job

WORKER = "sdxl@host-gpu0"


@dataclass
class Schedule:
    """Calls for later; the test makes the last one."""

    delays_s: list[float] = field(default_factory=list)
    pending: Callable[[], None] | None = None

    def __call__(self, delay_s: float, call: Callable[[], None]) -> Schedule:
        self.delays_s.append(delay_s)
        self.pending = call
        return self

    def cancel(self) -> None:
        self.pending = None

    def make(self) -> None:
        assert self.pending is not None
        self.pending()


@dataclass
class Models:
    """Models that fail to load as long as `error` is set."""

    error: Exception | None = None
    calls: list[str] = field(default_factory=list)

    def warm(self) -> None:
        self._load("warm")

    def reload(self) -> None:
        self._load("reload")

    def info(self) -> dict[str, Any]:
        return {"sdxl": {"name": "tiny-sdxl"}}

    def _load(self, call: str) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error


@pytest.fixture
def ledger(ourvidz_eager: Eager) -> Ledger:
    return ourvidz_eager.control.ledger


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    models = Models()
    monkeypatch.setattr("ourvidz.wiring.loading.models", lambda settings, family: models)
    monkeypatch.setattr("ourvidz.wiring.signing.signer", lambda settings: None)
    return models


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commands that were sent to the worker."""
    sent: list[str] = []
    for name in ("stop_consuming", "start_consuming", "request_load"):
        monkeypatch.setattr(dispatch, name, lambda worker_id, name=name: sent.append(name))
    return sent


@pytest.fixture
def schedule() -> Schedule:
    return Schedule()


@pytest.fixture
def warm_up(ledger: Ledger, models: Models, commands: list[str], schedule: Schedule) -> Iterator[WarmUp]:
    heartbeat = Heartbeat(
        ledger, worker_id=WORKER, family="sdxl", queue="sdxl_queue", pid=7, gpu="0", presence_s=15.0
    )
    heartbeat.start()
    yield WarmUp(heartbeat, family="sdxl", worker_id=WORKER, call_later=schedule)
    heartbeat.stop()


def test_the_pause_doubles_from_one_minute_to_fifteen() -> None:
    """A checkpoint of many gigabytes on a broken file system must not be read without a pause."""
    assert [retry_delay_s(failures) for failures in (1, 2, 3, 4, 5, 6, 2000)] == [
        60,
        120,
        240,
        480,
        900,
        900,
        900,
    ]


def test_loaded_models_are_reported(
    warm_up: WarmUp, ledger: Ledger, schedule: Schedule, models: Models
) -> None:
    """A further attempt, of a message that came late, does nothing."""
    warm_up.attempt()
    warm_up.attempt()
    (row,) = ledger.workers()
    assert (row.state, row.models, row.detail) == ("idle", ("sdxl",), {"info": models.info()})
    assert (models.calls, schedule.delays_s) == (["warm"], [])


def test_a_worker_registers_when_its_models_are_loaded(
    ourvidz_eager: Eager, warm_up: WarmUp, ledger: Ledger, models: Models
) -> None:
    """Not before: a caller that is sent to it would wait. What it could not load it does not register."""
    pod = load_settings(_env_file=None, RUNPOD_POD_ID="k2x9", SUPABASE_URL="https://abc.supabase.co")
    with control.using(replace(ourvidz_eager.control, settings=pod)):
        models.error = ModelLoadError("the file system is not mounted")
        warm_up.attempt()
        assert ledger.list_events("pending") == []
        models.error = None
        warm_up.attempt()
    (event,) = ledger.list_events("pending")
    assert (event.kind, event.worker_id) == ("registered", WORKER)
    assert event.callback_url == "https://abc.supabase.co/functions/v1/update-worker-url"
    assert event.callback_metadata["worker_url"] == "https://k2x9-7860.proxy.runpod.net"
    assert event.callback_metadata["capabilities"]["models"] == ["sdxl"]


def test_a_failure_is_reported_and_loading_tried_again_until_it_succeeds(
    warm_up: WarmUp, ledger: Ledger, schedule: Schedule, models: Models, commands: list[str]
) -> None:
    """As long as the process lives."""
    models.error = ModelLoadError("the file system is not mounted")
    for failures in (1, 2, 3):
        warm_up.attempt()
        (row,) = ledger.workers()
        assert (row.state, row.models) == ("failed", ())
        assert (row.detail["error"], row.detail["load_failures"]) == (models.error.message, failures)
        assert row.detail["retry_at"] > row.started_at
        schedule.make()
    assert models.calls == ["warm", "reload"] * 3
    assert commands == ["stop_consuming", *["request_load"] * 3]
    models.error = None
    warm_up.attempt()
    (row,) = ledger.workers()
    assert (row.state, row.models, row.detail) == ("idle", ("sdxl",), {"info": models.info()})
    assert commands[-1] == "start_consuming"
    assert schedule.pending is None


def test_a_lost_message_costs_one_more_pause(
    warm_up: WarmUp, schedule: Schedule, models: Models, commands: list[str]
) -> None:
    """The broker may be what is broken."""
    models.error = SettingsError("OURVIDZ_SDXL_MODEL: no such folder")
    warm_up.attempt()
    schedule.make()
    schedule.make()
    assert schedule.delays_s == [60, 60, 60]
    assert commands.count("request_load") == 2


def test_a_parent_that_cannot_be_told_does_not_end_the_attempts(
    warm_up: WarmUp, schedule: Schedule, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claims are refused anyway."""

    def away(worker_id: str) -> None:
        raise WorkerUnavailable("the job store cannot be reached")

    monkeypatch.setattr(dispatch, "stop_consuming", away)
    models.error = ModelLoadError("a file is missing")
    warm_up.attempt()
    assert schedule.delays_s == [60]


def test_a_failed_worker_claims_nothing_and_is_not_available(
    warm_up: WarmUp, ledger: Ledger, models: Models, schedule: Schedule
) -> None:
    """Submissions were accepted for ever, with nobody to run them."""
    models.error = ModelLoadError("a file is missing")
    warm_up.attempt()
    ledger.register(image_job("a"), priority=6)
    assert ledger.claim("a", 1, worker_id=WORKER, lease_s=10, token="t") is None
    assert ledger.active_workers() == []
    seen_at = ledger.queue_seen_at("sdxl_queue")
    warm_up.attempt()
    assert ledger.queue_seen_at("sdxl_queue") == seen_at
    assert WorkerAvailability(ledger, grace_s=0.0).is_missing("sdxl_queue")
    models.error = None
    warm_up.attempt()
    assert ledger.claim("a", 1, worker_id=WORKER, lease_s=10, token="u") is not None
    assert [row.id for row in ledger.active_workers()] == [WORKER]


def test_a_task_that_arrives_late_does_not_hide_the_failure(
    warm_up: WarmUp, ledger: Ledger, models: Models
) -> None:
    """Every task sets its worker to busy and to idle."""
    models.error = ModelLoadError("a file is missing")
    warm_up.attempt()
    warm_up._heartbeat.set_state("idle")
    warm_up._heartbeat._send()
    assert ledger.workers()[0].state == "failed"


def test_calls_for_later_are_made_and_can_be_cancelled() -> None:
    """By the timers of the standard library."""
    import threading

    made = threading.Event()
    warmup.call_later(0.0, made.set)
    assert made.wait(10)
    never = threading.Event()
    warmup.call_later(0.2, never.set).cancel()
    assert not never.wait(0.3)
