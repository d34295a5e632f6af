"""The processes of a running stack: which process has which role, and its processor time."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress

import psutil

SERVER = "server"
"""The role of the Redis-protocol server."""


class StackProcesses:
    """The processes of one `ourvidz up`, by role.

    A role is the name under which `up` supervises a process, `<name> child` for what that process started,
    and `up` for the supervisor itself. up_pid: its process id. pids: the name and process id of each
    supervised process, as in the ready line.
    """

    def __init__(self, up_pid: int, pids: dict[str, int]) -> None:
        self._up_pid = up_pid
        self._pids = {(SERVER if name == "redis" else name): pid for name, pid in pids.items()}

    def by_role(self) -> dict[str, list[psutil.Process]]:
        """The processes that run now. A process that ends meanwhile is left out."""
        roles: dict[str, list[psutil.Process]] = defaultdict(list)
        for name, pid in self._pids.items():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                roles[name].append(process)
                if children := process.children(recursive=True):
                    roles[f"{name} child"] = children
        up = psutil.Process(self._up_pid)
        known = {process.pid for processes in roles.values() for process in processes}
        roles["up"] = [up, *(child for child in up.children(recursive=True) if child.pid not in known)]
        return dict(roles)

    def processor_s(self) -> dict[str, float]:
        """Seconds of processor time that each role has used so far."""
        return {role: sum(map(processor_s, processes)) for role, processes in self.by_role().items()}

    def memory_mib(self) -> dict[str, float]:
        """MiB of memory of each role: PSS, in which shared pages count in proportion; RSS where there is no
        PSS."""
        return {role: sum(map(memory_mib, processes)) for role, processes in self.by_role().items()}

    def role_of_port(self) -> dict[int, str]:
        """The role that each local TCP port belongs to, for the connections that are open now."""
        ports = {}
        for role, processes in self.by_role().items():
            for process in processes:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    ports |= {each.laddr.port: role for each in process.net_connections("tcp") if each.raddr}
        return ports


def processor_s(process: psutil.Process) -> float:
    """Seconds of processor time of a process; 0 when it has ended."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def memory_mib(process: psutil.Process) -> float:
    """MiB of memory of a process: PSS, or RSS where the system has no PSS; 0 when it has ended."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        memory = process.memory_full_info()
        return float(getattr(memory, "pss", memory.rss)) / (1 << 20)
    return 0.0


def differences(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """`after - before` by name; what is missing before counts as 0."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
