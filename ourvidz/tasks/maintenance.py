"""The door of the keeper."""

from __future__ import annotations

from dataclasses import asdict

from ourvidz import log, signals  # noqa: F401  every worker connects the handlers
from ourvidz.app import app
from ourvidz.celery_settings import SWEEP_TASK
from ourvidz.dispatch import Broker
from ourvidz.ledger.sweep import sweep
from ourvidz.wiring import control

_log = log.get(__name__)


@app.task(name=SWEEP_TASK, acks_late=False, ignore_result=True)
def sweep_ledger() -> None:
    """Bring back what got lost."""
    at = control.current()
    done = {
        what: count for what, count in asdict(sweep(at.ledger, Broker(), at.sweep_options)).items() if count
    }
    if done:
        _log.info("swept", **done)
