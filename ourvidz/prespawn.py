"""Starts the interpreter of a worker's child before the worker's pool does.

The pool starts its child when the parent has imported Celery and is connected, and the child then imports
torch and diffusers, which takes longer. So `ourvidz worker` first of all starts an interpreter that imports
the libraries meanwhile and becomes the pool's first child. A child that replaces it is spawned by the pool.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ourvidz.subprocesses import DIES_WITH, dying_with_parent

MAX_FDS = 64
"""File descriptors that are handed over at most; a pool's child needs about ten."""
RESERVED_FDS = 128
"""Descriptors below this number can be handed over: the interpreter leaves the numbers free. Some systems
allow 256 open files."""

_waiting: Interpreter | None = None


class Interpreter:
    """A child process that imports the libraries of this process's role and waits for its work.

    It is killed when the thread that made it ends.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        fd = theirs.fileno()
        # The pool hands over its own import path only later, and a builder of models may be anywhere on it.
        code = f"import sys; sys.path[:] = {sys.path!r}; from ourvidz import child; child.main({fd})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=(fd,), preexec_fn=dying_with_parent(DIES_WITH)
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

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
        self._process.wait()


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
    _waiting = Interpreter()
    try:
        yield
    finally:
        if _waiting is not None:
            _waiting.dismiss()
            _waiting = None


def take() -> Interpreter | None:
    """Return the interpreter that was started, once; None if there is none or it has ended."""
    global _waiting
    interpreter, _waiting = _waiting, None
    return interpreter if interpreter is not None and interpreter.running else None
