"""The task of the keeper."""

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
    """Run one sweep: recover lost attempts and messages, start due deliveries, purge old records."""
    ledger, options = control.current().ledger, control.current().sweep_options
    counts = {name: count for name, count in asdict(sweep(ledger, Broker(), options)).items() if count}
    if counts:
        _log.info("swept", **counts)
