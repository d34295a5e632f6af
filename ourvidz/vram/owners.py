"""Names of the processes that hold device memory, and whether such a process has ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil

_START_FIELD = 19
"""Position of the start time in Linux' `/proc/PID/stat`, counted after the command's name."""


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
    """When a process started, as a number that no step of the clock changes; '' if there is no process, or
    only its exit status."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        try:
            # Ticks since the host started. The time of day that psutil computes of them moves with the clock.
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            return stat.rpartition(")")[2].split()[_START_FIELD]
        except OSError:
            return f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
