"""Opening TCP connections by a deadline: name look-ups, and one address after the other."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

CONNECT_TIMEOUT_S = 5.0
"""How long each address of a host may take to connect."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on the monotonic clock, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def remaining_s(self, at_most: float | None = None) -> float:
        """Seconds left, limited to `at_most`. Raises `TimeoutError` when none are left."""
        remaining = self.at - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        return remaining if at_most is None else min(at_most, remaining)


class EgressDenied(Exception):
    """The egress policy forbids this host. The message is for our log: it names addresses."""


class Connector(Protocol):
    """Opens TCP connections."""

    def connect(self, host: str, port: int, *, connect_timeout_s: float, deadline: Deadline) -> socket.socket:
        """Connect to `host` (a name, or an address without brackets) by the deadline, spending at most
        `connect_timeout_s` on each address. Raises `EgressDenied` if the host must not be called, `OSError`
        if no address accepts."""


class DirectConnector:
    """Connects to any host; implements `Connector`."""

    def connect(self, host: str, port: int, *, connect_timeout_s: float, deadline: Deadline) -> socket.socket:
        """Resolve the name and connect to the first of its addresses that accepts."""
        resolved = run_before(deadline, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        failure: OSError = ConnectionError("the name has no address")
        for family, kind, protocol, _name, address in resolved:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(deadline.remaining_s(connect_timeout_s))
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure


def run_before(deadline: Deadline, call: Callable[[], _T]) -> _T:
    """Run `call` in a thread and return its result. Raises what it raises, or `TimeoutError` at the deadline.

    `getaddrinfo` takes no time limit; a thread that it still holds then ends when the system's resolver gives
    up.
    """
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except Exception as error:  # noqa: BLE001  raised again in the waiting thread
            result.set_exception(error)

    threading.Thread(target=run, name="dns-lookup", daemon=True).start()
    return result.result(timeout=deadline.remaining_s())
