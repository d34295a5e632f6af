"""Starts the interpreter of a worker's child before the worker's pool does.

The pool starts its child when the parent has imported Celery and is connected, and the child then imports
torch and diffusers, which takes longer. So `ourvidz worker` first of all starts an interpreter that imports
the libraries meanwhile and becomes the pool's first child. Where `ourvidz up` has started a fork server, the
interpreter is forked by it, and so is a child that replaces it; else the pool spawns that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from ourvidz.forkserver import RESTART_S, START_S, ForkedProcess
from ourvidz.settings import environment, settings
from ourvidz.subprocesses import DIES_WITH, dying_with_parent

MAX_FDS = 64
"""File descriptors that are handed over at most; a pool's child needs about ten."""
RESERVED_FDS = 128
"""Descriptors below this number can be handed over: the interpreter leaves the numbers free. Some systems
allow 256 open files."""

_waiting: Interpreter | None = None


class SpawnedProcess:
    """A new interpreter that runs `child.main`. It is killed when the thread that made it ends."""

    def __init__(self, own: socket.socket) -> None:
        fd = own.fileno()
        # The pool hands over its own import path only later, and a builder of models may be anywhere on it.
        code = f"import sys; sys.path[:] = {sys.path!r}; from ourvidz import child; child.main({fd})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=(fd,), preexec_fn=dying_with_parent(DIES_WITH)
        )
        self.pid = self._process.pid

    def poll(self, *, wait: bool = False) -> int | None:
        """How the process ended: its exit status, or minus the signal that killed it; None while it runs.

        May be called by the handler of a signal that has interrupted another call, as Celery does when a
        worker is to stop at once. `Popen.wait` holds a lock, for which that handler would wait for ever.
        """
        process = self._process
        if process.returncode is None:
            with suppress(ChildProcessError):  # the interrupting call has got it
                pid, status = os.waitpid(process.pid, 0 if wait else os.WNOHANG)
                if pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode

    def kill(self) -> None:
        """Kill the process."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.poll(wait=True)


class Interpreter:
    """A child process that imports the libraries of this process's role and waits for its work.

    `start` makes its process, with the interpreter's end of a socket.
    """

    def __init__(self, start: Callable[[socket.socket], SpawnedProcess | ForkedProcess]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = start(theirs)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        try:
            return self._process.pid > 0 and self._process.poll() is None
        except OSError:
            return False

    def poll(self, *, wait: bool = False) -> int | None:
        """How the process ended: its exit status, or minus the signal that killed it; None while it runs."""
        return self._process.poll(wait=wait)

    def hand_over(self, fds: Sequence[int], env: dict[str, str]) -> None:
        """Send the file descriptors of the pool's child, the one with its process object first, and its
        environment. Raises `OSError` if the process has ended, or a descriptor's number is too high."""
        if max(fds) >= RESERVED_FDS:
            raise OSError(f"a descriptor above {RESERVED_FDS} cannot be handed over")
        with self._socket:
            socket.send_fds(self._socket, [b"\0"], fds)
            self._socket.sendall(json.dumps([list(fds), env]).encode())

    def dismiss(self) -> None:
        """End the process. It must not have been handed anything."""
        self._socket.close()
        self._process.kill()


def forked(*, start_s: float) -> Interpreter | None:
    """An interpreter forked by the fork server of `ourvidz up`; None where there is none that answers."""
    server_fd, family = settings().fork_server_fd, settings().worker
    if server_fd is None or family is None:
        return None
    fork = partial(ForkedProcess, server_fd, family, environment=environment(), start_s=start_s)
    try:
        return Interpreter(fork)
    except OSError:
        return None


def reserve_descriptors() -> set[int]:
    """Occupy the descriptors that can be handed over, and return those that were free. Called by the
    interpreter, before a library opens files."""
    reserved = set()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    while descriptor < RESERVED_FDS:
        reserved.add(descriptor)
        descriptor = os.dup(descriptor)
    os.close(descriptor)
    return reserved


def receive(sock: socket.socket, reserved: set[int]) -> tuple[int, dict[str, str]] | None:
    """Wait for what `hand_over` sends, and return the descriptor of the process object and the environment;
    None when the parent has ended. Called by the interpreter.

    Each descriptor gets the number that it has in the parent: a pool's child names its queue by it.
    """
    with sock:
        message, received, _, _ = socket.recv_fds(sock, 1, MAX_FDS)
        if not message:
            return None
        with sock.makefile("rb") as rest:
            numbers, env = json.load(rest)
    for descriptor, number in zip(received, numbers, strict=True):
        os.dup2(descriptor, number, inheritable=False)
        os.close(descriptor)
    for descriptor in reserved - set(numbers):
        os.close(descriptor)
    return numbers[0], env


@contextmanager
def interpreter() -> Iterator[None]:
    """Start the interpreter of this worker's first child, for a pool that is started inside this context.

    It imports what the role needs that the environment names. Enter the context from the main thread. One
    that no pool took ends with the context.
    """
    global _waiting
    _waiting = forked(start_s=START_S) or Interpreter(SpawnedProcess)
    try:
        yield
    finally:
        if _waiting is not None:
            _waiting.dismiss()
            _waiting = None


def take() -> Interpreter | None:
    """Return the interpreter that was started, once, and later one that is forked; None if there is none, or
    it has ended."""
    global _waiting
    interpreter, _waiting = _waiting, None
    if interpreter is None:
        interpreter = forked(start_s=RESTART_S)
    return interpreter if interpreter is not None and interpreter.running else None
