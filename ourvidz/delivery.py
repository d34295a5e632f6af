"""The process of `ourvidz worker io`: delivers callbacks until it is stopped."""

from __future__ import annotations

import os
import signal
import threading

from ourvidz import log, startup
from ourvidz.callbacks.consumer import OutboxConsumer
from ourvidz.liveness.beats import Beat
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.settings import Settings
from ourvidz.stop_signals import stop_signals
from ourvidz.wiring import control

NAME = "io"

_log = log.get(__name__)


def run(settings: Settings) -> None:
    """Deliver callbacks until SIGTERM, SIGINT or SIGQUIT, and SIGHUP unless it is ignored.

    Then deliveries in progress may end, for `OURVIDZ_DRAIN_S` at most; a second signal ends the process at
    once. What was not delivered stays in the outbox, and is delivered by another process or the next one.
    """
    log.configure(settings.log_level, settings.log_format)
    signals = stop_signals() | {signal.SIGQUIT}
    # Before the threads start: they inherit the mask, so only `sigwait` below receives the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    app, worker_id = control.current(), settings.worker_id(NAME)
    heartbeat = Heartbeat(
        app.ledger,
        worker_id=worker_id,
        family=NAME,
        queue=NAME,
        pid=os.getpid(),
        gpu=None,
        presence_s=settings.presence_s,
    )
    heartbeat.start()
    startup.mark("connected")
    consumer = OutboxConsumer(
        app.ledger, app.callback_sender, worker_id=worker_id, beat=Beat(settings.beats_dir, "outbox")
    )
    consumer.start()
    heartbeat.update("idle")
    startup.mark("ready")
    _log.info("process_ready", **startup.phases())
    signal.sigwait(signals)
    consumer.stop()
    _log.info("process_stopping")
    threading.Thread(target=_end_when_idle, args=(consumer, settings.drain_s), daemon=True).start()
    signal.sigwait(signals)
    heartbeat.stop()


def _end_when_idle(consumer: OutboxConsumer, limit_s: float) -> None:
    """Wake the main thread when nothing is being delivered any more, or after `limit_s`."""
    if not consumer.wait_until_idle(limit_s):
        _log.warning("deliveries_cut_off")
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
