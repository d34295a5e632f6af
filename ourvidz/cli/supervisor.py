"""Keeping processes running: start, restart with back-off, stop in steps.

Everything happens in the thread that made the supervisor: on Linux a child is told to die with the
*thread* that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 10.0
STEADY_S = 30.0
"""A process that ran this long starts its back-off afresh."""
POLL_S = 0.05

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

Step = tuple[signal.Signals, float]
"""A signal, and how many seconds a process has to go after it."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One process to keep running. `log` gets what it writes."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log: Path
    pass_fds: tuple[int, ...] = ()


@dataclass(slots=True)
class _Child:
    spec: Spec
    process: subprocess.Popen[bytes]
    started_at: float
    delay_s: float = 0.0
    due_at: float | None = None
    wanted: bool = field(default=True)


def next_delay_s(last_s: float, ran_s: float) -> float:
    """How long to wait before the next start: 0.5 s, doubled up to 10 s, afresh after a steady run."""
    if last_s == 0 or ran_s >= STEADY_S:
        return FIRST_DELAY_S
    return min(2 * last_s, LAST_DELAY_S)


class Supervisor:
    """The processes of one `ourvidz up`. `hurry`, once set, turns every wait into a kill."""

    def __init__(self, notice: Callable[[str], None], hurry: threading.Event | None = None) -> None:
        self._notice = notice
        self._hurry = hurry or threading.Event()
        self._children: dict[str, _Child] = {}

    def start(self, spec: Spec) -> None:
        """Start a process and keep it running from now on."""
        self._children[spec.name] = _Child(spec, _spawn(spec), time.monotonic())

    def tick(self) -> None:
        """Look after everyone: note who died, start again who is due. Call it several times a second."""
        now = time.monotonic()
        for child in self._children.values():
            if not child.wanted:
                continue
            if child.due_at is None and child.process.poll() is not None:
                self._died(child, now)
            elif child.due_at is not None and now >= child.due_at:
                self._start_again(child, now)

    def alive(self, name: str) -> bool:
        """Whether a process runs right now."""
        child = self._children.get(name)
        return child is not None and child.process.poll() is None

    def pids(self) -> dict[str, int]:
        """Name → process id of everyone that runs."""
        return {name: child.process.pid for name, child in self._children.items() if self.alive(name)}

    def forget(self, name: str) -> None:
        """Kill a process and stop looking after it."""
        child = self._children.pop(name, None)
        if child is not None:
            _kill(child.process)

    def stop(self, names: Iterable[str], steps: Sequence[Step]) -> None:
        """Stop processes together: each signal in turn until everyone has gone; who stays is killed."""
        going = [self._children[name] for name in names if name in self._children]
        for child in going:
            child.wanted = False
        for signum, patience_s in steps:
            for child in going:
                if child.process.poll() is None:
                    child.process.send_signal(signum)
            if self._gone(going, patience_s):
                break
        for child in going:
            _kill(child.process)

    def hurried(self) -> bool:
        """Whether nothing is waited for any more."""
        return self._hurry.is_set()

    def kill(self) -> None:
        """Kill whoever is left."""
        for name in list(self._children):
            self.forget(name)

    def _gone(self, going: list[_Child], patience_s: float) -> bool:
        patience_ends = time.monotonic() + patience_s
        while any(child.process.poll() is None for child in going):
            if time.monotonic() >= patience_ends or self._hurry.wait(POLL_S):
                return False
            self.tick()
        return True

    def _died(self, child: _Child, now: float) -> None:
        _kill(child.process)
        status = child.process.returncode
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._postpone(child, now, f"{child.spec.name} ended ({how}); its log: {child.spec.log}")

    def _start_again(self, child: _Child, now: float) -> None:
        try:
            child.process = _spawn(child.spec)
        except OSError as error:
            self._postpone(child, now, f"{child.spec.name} cannot be started: {error}")
        else:
            child.started_at, child.due_at = now, None

    def _postpone(self, child: _Child, now: float, why: str) -> None:
        child.delay_s = next_delay_s(child.delay_s, now - child.started_at)
        child.due_at = now + child.delay_s
        self._notice(f"{why}; starting it again in {child.delay_s:g} s")


def _spawn(spec: Spec) -> subprocess.Popen[bytes]:
    # Its own group: a Ctrl-C in the terminal is ours alone, and a kill reaches its children too.
    with spec.log.open("ab") as log:
        return subprocess.Popen(
            spec.argv,
            env=spec.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=spec.pass_fds,
            process_group=0,
            preexec_fn=dying_with_parent(signal.SIGKILL),
        )


def dying_with_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before anything else, so that it gets `signum` when this process dies, however it
    dies. None where the system has no such thing."""
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)

    return die_with_parent


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its whole group, which may outlive it, and wait for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Nobody left; macOS says EPERM for a group of zombies.
        process.poll()
    process.wait()
