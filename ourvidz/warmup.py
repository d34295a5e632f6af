"""Loading of a GPU worker's models: once when its child starts, and again after every failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ourvidz import dispatch, log, startup
from ourvidz.errors import ModelLoadError, NotFound, WorkerUnavailable
from ourvidz.liveness import registration
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.settings import settings
from ourvidz.wiring import control, loading, signing

FIRST_DELAY_S = 60.0
"""Pause before the first further attempt; doubled after each failure."""
MAX_DELAY_S = 900.0

_log = log.get(__name__)


class Cancellable(Protocol):
    """A call that is scheduled for later."""

    def cancel(self) -> None:
        """Do not make the call, if it has not been made."""


def call_later(delay_s: float, call: Callable[[], None]) -> Cancellable:
    """Make a call on a thread of its own after `delay_s` seconds, while the process lives."""
    timer = threading.Timer(delay_s, call)
    timer.daemon = True
    timer.start()
    return timer


def retry_delay_s(failures: int) -> float:
    """Seconds between the last of so many failures in a row and the next attempt."""
    return float(min(FIRST_DELAY_S * 2 ** min(failures - 1, 10), MAX_DELAY_S))


class WarmUp:
    """Loads the models of this process until it succeeds.

    After a failure the worker is reported as `failed`: it consumes and claims nothing and does not count as
    available, because one broken host would fail everybody's jobs, one after the other. Each further attempt
    is a message to the worker's own queue, so that it runs where jobs run: torch keeps settings per thread.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        *,
        family: str,
        worker_id: str,
        call_later: Callable[[float, Callable[[], None]], Cancellable] = call_later,
    ) -> None:
        self._heartbeat = heartbeat
        self._family = family
        self._worker_id = worker_id
        self._call_later = call_later
        self._failures = 0
        self._loaded = False
        self._scheduled: Cancellable | None = None

    def attempt(self) -> None:
        """Load the models, and report how it went. Does nothing once they are loaded. Raises nothing."""
        if self._scheduled is not None:
            self._scheduled.cancel()
        if self._loaded:
            return
        try:
            signing.signer(settings())
            info = _load(self._family)
        except Exception as error:  # noqa: BLE001  Celery would swallow it, and the worker would seem to start for ever
            self._report_failure(error)
        else:
            self._report_success(info)

    def _report_failure(self, error: Exception) -> None:
        self._failures += 1
        delay_s = retry_delay_s(self._failures)
        _log.exception("model_load_failed", family=self._family, failures=self._failures, retry_in_s=delay_s)
        self._heartbeat.update(
            "failed",
            error=getattr(error, "message", str(error)),
            load_failures=self._failures,
            retry_at=time.time() + delay_s,
        )
        if self._failures == 1:
            _tell_parent(dispatch.stop_consuming, self._worker_id)
        self._schedule(delay_s)

    def _report_success(self, info: dict[str, Any]) -> None:
        self._loaded = True
        startup.mark("loaded")
        _log.info("models_loaded", **info)
        app = control.current()
        made = registration.of_worker(app.settings, self._family, models=info)
        self._heartbeat.update(
            "idle",
            models=(self._family,),
            info=info,
            registration=registration.as_detail(made),
            error=None,
            load_failures=None,
            retry_at=None,
        )
        if made is not None:
            registration.update_registrations(app.ledger)
        # Also at the first attempt: the child before this one may have failed.
        _tell_parent(dispatch.start_consuming, self._worker_id)
        startup.mark("ready")
        _log.info("process_ready", part="child", **startup.phases())

    def _schedule(self, delay_s: float) -> None:
        def request() -> None:
            # Before the message, whose attempt cancels it: one that is lost costs one more delay.
            self._schedule(delay_s)
            dispatch.request_load(self._worker_id)

        self._scheduled = self._call_later(delay_s, request)


def _load(family: str) -> dict[str, Any]:
    """Load the models of a family, a second time if the first fails. Returns their description."""
    control.current().prepare("gate", "references")
    models = loading.models(settings(), family)
    try:
        models.warm()
    except ModelLoadError:
        _log.warning("model_load_retried", family=family)
        models.reload()
    return models.info()


def _tell_parent(command: Callable[[str], None], worker_id: str) -> None:
    """Send the parent a command. One that is lost leaves messages to a worker whose claims are refused, or a
    worker idle until its queue is resumed."""
    try:
        command(worker_id)
    except (*dispatch.BROKER_ERRORS, WorkerUnavailable, NotFound) as error:
        _log.warning("parent_not_told", worker_id=worker_id, error=type(error).__name__)
