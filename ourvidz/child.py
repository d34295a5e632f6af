"""The interpreter that becomes a worker's first child: see `ourvidz.prespawn`."""

from __future__ import annotations

import signal
import socket
import sys
from typing import NoReturn

from ourvidz import prespawn, startup
from ourvidz.settings import set_environment, settings


def main(fd: int) -> NoReturn:
    """Import what this worker's child needs, then be the process that the pool hands over on a socket."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # As in the pool's other children: only the parent ends them.
        signal.signal(signum, signal.SIG_IGN)
    # Celery binds tasks differently in a fresh interpreter, and asks this when it is imported.
    set_environment(FORKED_BY_MULTIPROCESSING="1")
    reserved = prespawn.reserve_descriptors()
    with startup.collector_paused():
        _import_libraries()
    startup.mark("imported")
    received = prespawn.receive(socket.socket(fileno=fd), reserved)
    if received is None:
        sys.exit()
    process_object, environment = received
    set_environment(**environment)
    sys.exit(_run(process_object))


def _import_libraries() -> None:
    from ourvidz import pool, tasks  # noqa: F401
    from ourvidz.wiring import loading

    tasks.load()
    loading.preload(settings(), settings().worker or "")


def _run(process_object: int) -> int:
    """Run the process object that is pickled on this descriptor, and return its exit status."""
    from billiard import spawn

    return int(spawn._main(process_object))
