"""The process of `ourvidz worker keeper`."""

from __future__ import annotations

import os
import signal

from ourvidz import log, startup
from ourvidz.keeper.duties import duties
from ourvidz.keeper.runner import DutyRunner
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.settings import Settings
from ourvidz.stop_signals import stop_signals
from ourvidz.wiring import control

NAME = "keeper"
STOP_S = 5.0
"""How long a duty that runs at a stop may take to finish. Duties can be interrupted anywhere."""

_log = log.get(__name__)


def run(settings: Settings) -> None:
    """Perform the duties until SIGTERM, SIGINT, SIGQUIT, or SIGHUP unless it is ignored."""
    log.configure(settings.log_level, settings.log_format)
    signals = stop_signals() | {signal.SIGQUIT}
    # Before the threads start: they inherit the mask, so only `sigwait` below receives the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ledger = control.current().ledger
    heartbeat = Heartbeat(
        ledger,
        worker_id=settings.worker_id(NAME),
        family=NAME,
        queue=NAME,
        pid=os.getpid(),
        gpu=None,
        presence_s=settings.presence_s,
    )
    heartbeat.start()
    heartbeat.update("idle")
    startup.mark("connected")
    runner = DutyRunner(ledger, duties(), lease_s=settings.lease_s, beats_dir=settings.beats_dir)
    runner.start()
    startup.mark("ready")
    _log.info("process_ready", **startup.phases())
    signal.sigwait(signals)
    runner.stop(timeout_s=STOP_S)
    heartbeat.stop()
