"""The prefork pool of GPU workers: children ignore stop signals, and only their parent ends them.

A supervisor that signals a whole process group (systemd by default, honcho, Ctrl-C in a terminal) reaches the
child that computes, and by default it dies in the middle of a job. Here the parent alone decides: it drains,
and where it must end a child (hard time limit, revoke, cold shutdown) it uses SIGKILL. Celery's own pool uses
SIGTERM with the default action, which ends the child just as abruptly.

A child that is told to exit waits until its parent has read all its results. A parent that stops while a
message is on its way to the child forgets the message and reads no result of it, so billiard's child would
wait for half a minute. Here it waits for a second: the ledger has all outcomes, and results are hints.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import billiard.pool
from billiard import connection, popen_spawn_posix, reduction, spawn
from billiard.context import SpawnProcess, set_spawning_popen
from celery.concurrency import prefork
from celery.concurrency.asynpool import AsynPool

from ourvidz import drain_notice, prespawn
from ourvidz.settings import environment

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that supervisors and terminals send to a whole process group; SIGHUP when one closes."""

RESULT_WAIT_S = 1.0
"""How long a child that exits waits until its parent has read its results."""


class _AdoptingPopen(popen_spawn_posix.Popen):  # type: ignore[misc]
    """Runs a process object in an interpreter that this process has already started."""

    returncode: int | None

    def __init__(self, process_obj: SpawnProcess, interpreter: prespawn.Interpreter) -> None:
        self._interpreter = interpreter
        super().__init__(process_obj)

    def _launch(self, process_obj: SpawnProcess) -> None:
        preparation = spawn.get_preparation_data(process_obj._name)
        pickled = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, pickled)
            reduction.dump(process_obj, pickled)
        finally:
            set_spawning_popen(None)
        self.sentinel, ends_with_child = os.pipe()
        reads, writes = os.pipe()
        try:
            self._interpreter.hand_over([reads, ends_with_child, *self._fds], environment())
            with open(writes, "wb", closefd=False) as pipe:
                pipe.write(pickled.getbuffer())
        finally:
            for descriptor in (reads, ends_with_child, writes):
                os.close(descriptor)
        self.pid = self._interpreter.pid

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """How the process ended; None while it runs. It need not be a child of this process."""
        if self.returncode is None:
            self.returncode = self._interpreter.poll(wait=not flag & os.WNOHANG)
        return self.returncode


class _Child(SpawnProcess):  # type: ignore[misc]
    @staticmethod
    def _Popen(process_obj: SpawnProcess) -> Any:
        """Start the process: the first one in the interpreter that imports its libraries since this worker
        was started."""
        interpreter = prespawn.take()
        if interpreter is not None:
            try:
                return _AdoptingPopen(process_obj, interpreter)
            except OSError:
                interpreter.dismiss()
        return popen_spawn_posix.Popen(process_obj)

    def terminate(self) -> None:
        """End the process at once."""
        if self.pid is not None and self.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class _Pool(AsynPool):  # type: ignore[misc]
    def __init__(self, *args: Any, initializer: Callable[..., None], **options: Any) -> None:
        # A new pipe for every pool, and never closed: its children inherit the reader whenever they start.
        reader, writer = connection.Pipe(duplex=False)
        drain_notice.add_writer(writer)
        super().__init__(*args, initializer=partial(_initialize, initializer, reader), **options)

    def Process(self, *args: Any, **options: Any) -> _Child:
        return _Child(*args, **options)

    def terminate_job(self, pid: int, sig: int | None = None) -> None:
        """End the child that runs a job. Stop signals become SIGKILL; others are sent as they are."""
        ends = sig is None or sig in STOP_SIGNALS
        super().terminate_job(pid, signal.SIGKILL if ends else sig)


class TaskPool(prefork.TaskPool):  # type: ignore[misc]
    """Celery's prefork pool with such children; the setting `worker_pool` names it."""

    Pool = _Pool


def _initialize(initializer: Callable[..., None], reader: drain_notice.Reader, *args: Any) -> None:
    """Ignore stop signals in this child, listen to its parent's notice of a drain instead, and shorten its
    wait at the end; then run Celery's own initializer, which loads the models."""
    drain_notice.listen(reader)
    billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(
        RESULT_WAIT_S / billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    )
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    # Else the initializer would restore the default actions.
    prefork.WORKER_SIGRESET.difference_update(signum.name for signum in STOP_SIGNALS)
    initializer(*args)
