"""The drain of a stopping worker: its running job may finish, or is handed back without a lost attempt."""

from __future__ import annotations

import signal
import threading
import time

from ourvidz import dispatch, drain_notice, log
from ourvidz.errors import WorkerUnavailable
from ourvidz.liveness import registration
from ourvidz.records.record import PAUSES, WAITING_FOR_GPU
from ourvidz.wiring import control

FIRST_LOOK_S = 0.25
LAST_LOOK_S = 5.0
"""Pauses between two looks at what the running job does, each twice as long as the one before it."""

_log = log.get(__name__)


class Drain:
    """One shutdown of a worker's parent process, on a thread of its own.

    From `start` on the worker claims nothing. After `limit_s` seconds, at `hand_back`, or while its job waits
    for the memory of the GPU, what it still holds is queued again, uncounted, and the process stops at once
    (Celery's cold shutdown); the child saves a checkpoint after every step from `start` on. The process
    usually ends before, with its last job. A worker that has not loaded its models holds nothing and stops at
    once.
    """

    def __init__(self, worker_id: str, *, limit_s: float) -> None:
        self._worker_id = worker_id
        self._limit_s = limit_s
        self._ended = threading.Event()
        # Not in the signal handler: it may have interrupted the holder of a connection's lock.
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    def start(self) -> None:
        """Stop claiming. Returns at once."""
        self._thread.start()

    def hand_back(self) -> None:
        """Hand the running job back now. Returns at once; safe to call twice."""
        self._ended.set()

    def _run(self) -> None:
        # Before the ledger, which may be away: the children save their work from now on.
        drain_notice.announce()
        try:
            self._drain()
        except Exception:  # noqa: BLE001  the process must stop, whatever cannot be read; its leases end
            _log.exception("drain_failed", worker_id=self._worker_id)
        stop_process()

    def _drain(self) -> None:
        try:
            control.current().ledger.set_draining(self._worker_id, True)
            if registration.is_enabled(control.current().settings):
                registration.update_registrations(control.current().ledger)
            is_loading = self._is_loading()
        except WorkerUnavailable:
            is_loading = False
            _log.warning("drain_not_noted", worker_id=self._worker_id)
        if not is_loading:
            self._wait_for_job()
        try:
            # Before the child is stopped: its death would count as a lost attempt.
            for job_id in dispatch.requeue_held_jobs(self._worker_id):
                _log.warning("job_handed_back", worker_id=self._worker_id, job_id=job_id)
        except WorkerUnavailable:
            _log.warning("job_not_handed_back", worker_id=self._worker_id)

    def _wait_for_job(self) -> None:
        """Wait until the limit or `hand_back`, or until the job waits for the GPU at two looks: it computes
        nothing then, and others may keep the memory for longer than the drain takes. At one look it may be
        between two of its stages, of which the next one has its memory at once."""
        ends_at, pause_s, waited = time.monotonic() + self._limit_s, FIRST_LOOK_S, False
        while True:
            waits = self._is_waiting_for_gpu()
            if waits and waited:
                return
            waited = waits
            left_s = ends_at - time.monotonic()
            if left_s <= 0 or self._ended.wait(min(FIRST_LOOK_S if waits else pause_s, left_s)):
                return
            pause_s = min(2 * pause_s, LAST_LOOK_S)

    def _is_waiting_for_gpu(self) -> bool:
        """Whether the job of this worker waits for memory, and no other one that it runs beside it computes.
        False while the ledger is away, or cannot tell."""
        try:
            stages = {record.stage for record in control.current().ledger.leased_by(self._worker_id)}
        except Exception as error:  # noqa: BLE001  a record that cannot be read: the job may work to the limit
            _log.warning("held_jobs_unknown", worker_id=self._worker_id, reason=str(error))
            return False
        return WAITING_FOR_GPU in stages and stages <= PAUSES

    def _is_loading(self) -> bool:
        """Whether the child loads its models: that takes minutes, and it would not end before."""
        return any(
            worker.id == self._worker_id and worker.state in ("starting", "failed")
            for worker in control.current().ledger.workers()
        )


def stop_process() -> None:
    """Ask Celery for a cold shutdown of this process."""
    # To the main thread: it is inside a system call, which the signal must interrupt.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGQUIT)
