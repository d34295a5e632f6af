"""Supervises child processes: starts them, restarts them when they end or hang, stops them in steps.

All methods of a supervisor must be called from the thread that made it: Linux sends a child its parent-death
signal when the *thread* that started it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ourvidz.liveness.beats import BeatMonitor
from ourvidz.subprocesses import dying_with_parent

MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0
BACKOFF_RESET_S = 30.0
"""A process that ran this long starts again at the shortest back-off."""
POLL_S = 0.05

StopStep = tuple[signal.Signals, float]
"""A signal, and the seconds that a process has to exit after it."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep running. Its standard output and error are appended to `log`.

    `beats`: the folder in which its parts show that they are alive; a part that has not for `hang_s` means
    that the process hangs. None: only its end is noticed.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log: Path
    pass_fds: tuple[int, ...] = ()
    beats: Path | None = None
    hang_s: float = 60.0


@dataclass(slots=True)
class _Child:
    """A supervised process. Times are those of the monotonic clock; `restart_at` is None while it runs."""

    spec: ProcessSpec
    process: subprocess.Popen[bytes]
    started_at: float
    monitor: BeatMonitor | None = None
    backoff_s: float = 0.0
    restart_at: float | None = None
    keep_running: bool = True


def next_backoff_s(last_s: float, ran_s: float) -> float:
    """Seconds before the next restart: 0.5, doubled each time up to 10; 0.5 again after a run of 30 s."""
    if last_s == 0 or ran_s >= BACKOFF_RESET_S:
        return MIN_BACKOFF_S
    return min(2 * last_s, MAX_BACKOFF_S)


class Supervisor:
    """The child processes of one `ourvidz up`, by name.

    notify: called with a line of text when a process ends or cannot be started. kill_now: once this event is
    set, `stop` no longer waits and kills.
    """

    def __init__(self, notify: Callable[[str], None], kill_now: threading.Event | None = None) -> None:
        self._notify = notify
        self._kill_now = kill_now or threading.Event()
        self._children: dict[str, _Child] = {}

    def start(self, spec: ProcessSpec) -> None:
        """Start a process, and restart it whenever it ends or hangs."""
        monitor = None if spec.beats is None else BeatMonitor(spec.beats, hang_s=spec.hang_s)
        if monitor is not None:
            monitor.reset()
        self._children[spec.name] = _Child(spec, _spawn(spec), time.monotonic(), monitor)

    def tick(self) -> None:
        """Schedule the restart of processes that ended, kill those that hang, and restart those that are due.
        Call it several times a second."""
        now = time.monotonic()
        for child in self._children.values():
            if not child.keep_running:
                continue
            if child.restart_at is None and child.process.poll() is not None:
                self._handle_exit(child, now)
            elif child.restart_at is None and child.monitor is not None:
                self._check_beats(child, child.monitor, now)
            elif child.restart_at is not None and now >= child.restart_at:
                self._restart(child, now)

    def is_running(self, name: str) -> bool:
        """Whether a process of this name runs now."""
        child = self._children.get(name)
        return child is not None and child.process.poll() is None

    def pids(self) -> dict[str, int]:
        """Name → process id of the processes that run now."""
        return {name: child.process.pid for name, child in self._children.items() if self.is_running(name)}

    def stop(self, names: Iterable[str], steps: Sequence[StopStep]) -> None:
        """Stop processes together: send each signal in turn until all have exited, then kill the rest.

        Names that are unknown are ignored; the other processes are supervised meanwhile.
        """
        children = [self._children[name] for name in names if name in self._children]
        for child in children:
            child.keep_running = False
        for signum, timeout_s in steps:
            for child in children:
                if child.process.poll() is None:
                    child.process.send_signal(signum)
            if self._wait_for_exit(children, timeout_s):
                break
        for child in children:
            _kill(child.process)

    def kill(self, name: str) -> None:
        """Kill a process with its group and remove it; an unknown name is ignored."""
        child = self._children.pop(name, None)
        if child is not None:
            _kill(child.process)

    def kill_all(self) -> None:
        """Kill and remove all processes."""
        for name in list(self._children):
            self.kill(name)

    def must_kill_now(self) -> bool:
        """Whether waiting is over: the operator asked for an immediate stop."""
        return self._kill_now.is_set()

    def _wait_for_exit(self, children: list[_Child], timeout_s: float) -> bool:
        """Whether all of these exited within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while any(child.process.poll() is None for child in children):
            if time.monotonic() >= deadline or self._kill_now.wait(POLL_S):
                return False
            self.tick()
        return True

    def _handle_exit(self, child: _Child, now: float) -> None:
        """Kill the remaining processes of the child's group and schedule a restart."""
        _kill(child.process)
        status = child.process.returncode
        cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._schedule_restart(child, now, f"{child.spec.name} ended ({cause}); its log: {child.spec.log}")

    def _check_beats(self, child: _Child, monitor: BeatMonitor, now: float) -> None:
        """Kill the child, and schedule a restart, when one of its parts is silent for too long."""
        part = monitor.silent_part(now)
        if part is None:
            return
        _kill(child.process)
        reason = (
            f"{child.spec.name} hangs ({part} has been silent for {child.spec.hang_s:g} s) and was killed"
        )
        self._schedule_restart(child, now, f"{reason}; its log: {child.spec.log}")

    def _restart(self, child: _Child, now: float) -> None:
        """Start the child again; if that fails, schedule the next restart."""
        if child.monitor is not None:
            child.monitor.reset()
        try:
            child.process = _spawn(child.spec)
        except OSError as error:
            self._schedule_restart(child, now, f"{child.spec.name} cannot be started: {error}")
        else:
            child.started_at, child.restart_at = now, None

    def _schedule_restart(self, child: _Child, now: float, reason: str) -> None:
        """Set the time of the next restart, after the back-off, and notify the operator."""
        child.backoff_s = next_backoff_s(child.backoff_s, now - child.started_at)
        child.restart_at = now + child.backoff_s
        self._notify(f"{reason}; starting it again in {child.backoff_s:g} s")


def _spawn(spec: ProcessSpec) -> subprocess.Popen[bytes]:
    # In its own process group: a Ctrl-C in the terminal reaches only `ourvidz up`, and a kill of the group
    # reaches the child's own children.
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


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its process group, which may outlive it, and wait for the process."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # The group is empty; macOS reports EPERM for a group of zombies.
        process.poll()
    process.wait()
