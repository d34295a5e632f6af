"""Names of the processes that hold device memory, and whether such a process has ended."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

_START_FIELD = 19
"""Position of the start time in Linux' `/proc/PID/stat`, counted after the command's name."""
_NAMESPACE_MARK = "/"


def owner_id(worker_id: str) -> str:
    """The name of this process: worker id, host and namespace of process ids, pid and start time, so that it
    names no later process."""
    pid = os.getpid()
    return f"{worker_id} {socket.gethostname()}{_NAMESPACE_MARK}{pid_namespace()} {pid} {_started_at(pid)}"


def is_visible(owner: str) -> bool:
    """Whether this process can see the process of an owner: on its host, and where its process ids count. One
    of an earlier release names no namespace; a name that cannot be read is one of a later release."""
    try:
        host, namespace, _, _ = _parse(owner)
    except ValueError:
        return False
    return host == socket.gethostname() and namespace in ("", pid_namespace())


def has_ended(owner: str) -> bool:
    """Whether the process of an owner has ended. False for one that cannot be seen from here."""
    if not is_visible(owner):
        return False
    _, _, pid, started_at = _parse(owner)
    return _started_at(pid) != started_at


def host_and_namespace(owner: str) -> tuple[str, str]:
    """The host of an owner, and its namespace of process ids; '' for one of an earlier release. Raises
    `ValueError` for a name that cannot be read."""
    return _parse(owner)[:2]


@cache
def pid_namespace() -> str:
    """The number of the namespace in which this process has its pid: containers have one of their own unless
    they are told to share it. '' on systems without namespaces."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _started_at(pid: int) -> str:
    """When a process started, as a number that no step of the clock changes; '' if there is no process, or
    only its exit status."""
    import psutil  # not on a control host, which reads the names of owners only

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


def _parse(owner: str) -> tuple[str, str, int, str]:
    """Host, namespace, pid and start time. Raises `ValueError`."""
    _, place, pid, started_at = owner.rsplit(" ", maxsplit=3)
    host, _, namespace = place.partition(_NAMESPACE_MARK)
    if not pid.isdigit():
        raise ValueError(f"{owner!r} has no process id")
    return host, namespace, int(pid), started_at
