"""The fork server's process: imports the libraries of all families, then forks (see `ourvidz.forkserver`)."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from ourvidz import child, startup
from ourvidz.forkserver import ForkServer
from ourvidz.settings import set_environment, share_processors
from ourvidz.wiring import loading

TASKS = Path("/proc/self/task")
"""The threads of this process, those of C libraries too."""


def main(fd: int, families: list[str]) -> NoReturn:
    """Import the libraries of these families, the first one first, and serve the requests of workers on a
    socket until killed. Refuses them where an import has started a thread: a process with several cannot be
    forked."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Sent to all processes of a service: the children would die with this one, in the middle of a job.
        signal.signal(signum, signal.SIG_IGN)
    share_processors()
    # Else NumPy starts threads when it is imported.
    set_environment(OPENBLAS_NUM_THREADS="1")
    from ourvidz.wiring import models

    server = ForkServer(socket.socket(fileno=fd), _run)
    imported: set[str] = set()
    for family in families:
        with startup.collector_paused():
            loading.preload_workflows(family)
            models.preload(family)
        if len(list(TASKS.iterdir())) > 1:
            sys.stderr.write("A library has started a thread: workers start their children by themselves.\n")
            server.refuses = True
        imported.add(family)
        server.serve(imported, timeout_s=0)
    while True:
        server.serve(imported)


def _run(fd: int, environment: dict[str, str]) -> NoReturn:
    set_environment(**environment)
    child.main(fd)
