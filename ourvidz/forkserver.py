"""A fork server: a process that has imported the libraries of all families, and forks the workers' children.

`ourvidz up` starts one where several families run on the CPU of one machine. Their children would each import
the same libraries; forked ones share the memory of what was imported, and have it at once. A worker asks with
a datagram on a socket that it inherits from `up`. Everything that a child gets comes with it: its standard
streams, its environment, and a socket over which the fork server tells how the child ended. When that socket
closes, because the worker is gone, the child is killed. So is it when the fork server ends.

Only imports happen before a fork: no settings are read, no thread is started, no GPU is touched.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ourvidz.subprocesses import DIES_WITH, dying_with_parent

REQUEST_BYTES = 1 << 17
"""The largest request; it is mostly the environment."""
START_S, RESTART_S = 120.0, 20.0
"""How long a worker waits for its first child, and for one that replaces it: the fork server may be importing
libraries."""
_NUMBER = struct.Struct("!i")
_STREAMS = 3

Run = Callable[[int, dict[str, str]], NoReturn]
"""What a child does, with the descriptor of its socket and its environment."""


class ForkedProcess:
    """A child that the fork server has forked for this process, within `start_s`; raises `OSError` where it
    does not."""

    def __init__(
        self,
        server_fd: int,
        family: str,
        own: socket.socket,
        environment: dict[str, str],
        *,
        start_s: float = START_S,
    ) -> None:
        self._start_s = start_s
        self._status: int | None = None
        self._connection, theirs = socket.socketpair()
        request = json.dumps({"family": family, "path": sys.path, "environment": environment}).encode()
        if len(request) >= REQUEST_BYTES:
            raise OSError("the environment is too large for a request")
        fds = [own.fileno(), theirs.fileno(), *range(_STREAMS)]
        with theirs, socket.socket(fileno=os.dup(server_fd)) as server:
            socket.send_fds(server, [request], fds, socket.MSG_DONTWAIT)
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The process id; waits until the process was forked. Raises `OSError` if it never is."""
        if self._pid is None:
            self._connection.settimeout(self._start_s)
            self._pid = self._receive()
            if self._pid is None:
                raise OSError("the fork server has ended, or cannot fork")
            self._connection.settimeout(None)
        return self._pid

    def poll(self, *, wait: bool = False) -> int | None:
        """How the process ended: its exit status, or minus the signal that killed it; None while it runs.
        Waits, as `pid` does, until the process was forked."""
        if self._status is None and self.pid:
            self._connection.setblocking(wait)
            try:
                answer = self._receive()
            except BlockingIOError:
                return None
            # A fork server that has ended has taken its children with it. The handler of a signal may have
            # received the answer meanwhile.
            if self._status is None:
                self._status = -DIES_WITH if answer is None else answer
        return self._status

    def kill(self) -> None:
        """Kill the process: it does not outlive its connection."""
        self._connection.close()
        self._status = -DIES_WITH

    def _receive(self) -> int | None:
        answer = self._connection.recv(_NUMBER.size)
        return _NUMBER.unpack(answer)[0] if answer else None


class ForkServer:
    """Serves the requests that come on one socket, in the thread that made it."""

    def __init__(self, requests: socket.socket, run: Run) -> None:
        self.refuses = False
        """Whether requests are refused from now on: workers start their children by themselves."""
        self._requests = requests
        self._run = run
        self._children: dict[int, socket.socket] = {}
        self._waiting: list[tuple[dict[str, Any], list[int]]] = []
        self._selector = selectors.DefaultSelector()
        self._wakeup, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(requests, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)

    def serve(self, imported: set[str], *, timeout_s: float | None = None) -> None:
        """Handle what comes within `timeout_s`: fork the children of imported families, tell how children
        have ended, and kill those whose worker is gone."""
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._requests:
                self._read_request()
            elif key.fileobj == self._wakeup:
                os.read(self._wakeup, 1024)
                self._reap()
            else:
                # A worker sends nothing: its socket is closed.
                self._forget(key.data, kill=True)
        if self.refuses:
            for _, fds in self._waiting:
                _close(fds)
            self._waiting.clear()
        ready = [request for request in self._waiting if request[0]["family"] in imported]
        self._waiting = [request for request in self._waiting if request not in ready]
        for request, fds in ready:
            self._fork(request, fds)

    def _read_request(self) -> None:
        data, fds, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, 2 + _STREAMS)
        try:
            self._waiting.append((json.loads(data), fds))
        except ValueError:  # cut off
            _close(fds)

    def _fork(self, request: dict[str, Any], fds: list[int]) -> None:
        own, remote, *streams = fds
        die_with_parent = dying_with_parent(DIES_WITH)
        pid = os.fork()
        if pid == 0:
            if die_with_parent is not None:
                die_with_parent()
            self._become_child(request, own, streams)
        connection = socket.socket(fileno=remote)
        _close([own, *streams])
        try:
            connection.sendall(_NUMBER.pack(pid))
        except OSError:
            os.kill(pid, DIES_WITH)
        self._children[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, pid)

    def _become_child(self, request: dict[str, Any], own: int, streams: list[int]) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        for fd in (int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
            if fd >= _STREAMS and fd != own:
                with suppress(OSError):  # the descriptor of the listing itself
                    os.close(fd)
        sys.path[:] = request["path"]
        self._run(own, request["environment"])

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._children.get(pid)
            if connection is not None:
                with suppress(OSError):
                    connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
                self._forget(pid, kill=False)

    def _forget(self, pid: int, *, kill: bool) -> None:
        connection = self._children.pop(pid, None)
        if connection is None:  # it ended in the same moment
            return
        self._selector.unregister(connection)
        connection.close()
        if kill:
            os.kill(pid, DIES_WITH)
            os.waitpid(pid, 0)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
