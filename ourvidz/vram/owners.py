"""Names of the processes that hold device memory, and whether such a process has ended."""

from __future__ import annotations

import os
import socket

import psutil


def owner_id(worker_id: str) -> str:
    """The name of this process: worker id, host, pid and start time, so that it names no later process."""
    pid = os.getpid()
    return f"{worker_id} {socket.gethostname()} {pid} {_started_at(pid)}"


def has_ended(owner: str) -> bool:
    """Whether the process of an owner has ended. False for a process of another host: nobody here can see
    it."""
    _, host, pid, started_at = owner.rsplit(" ", maxsplit=3)
    if host != socket.gethostname():
        return False
    return _started_at(int(pid)) != started_at


def _started_at(pid: int) -> str:
    """Start time of a process (seconds, two decimals); '' if there is none, or only its exit status."""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
