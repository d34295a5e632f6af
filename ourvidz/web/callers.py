"""Requests that stay open: a stopping shim serves callers that wait for a text, and refuses new ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ourvidz.errors import WorkerUnavailable

RETRY_AFTER_S = 2.0
"""When a refused caller may try again: another shim, or this one after its restart, then answers."""

Stop = asyncio.Future[None]
"""Done when the shim can no longer serve a request that is open."""


class OpenCallers:
    """The open requests of one shim.

    Two kinds: callers that wait for a text, which only this process can give them, and followers of a job's
    event stream, which resume it elsewhere. A stopping shim waits for the first kind only. It goes on taking
    followers as long as it runs: an EventSource does not try again after a refusal.
    """

    def __init__(self) -> None:
        self._waiting: set[Stop] = set()
        self._following: set[Stop] = set()
        self.stopping = False
        """Whether callers that would wait are refused."""

    @property
    def waiting(self) -> int:
        """How many callers wait for a text."""
        return len(self._waiting)

    @contextmanager
    def wait(self) -> Iterator[Stop]:
        """Count a caller that waits for a text. Raises `WorkerUnavailable` when the shim is stopping."""
        if self.stopping:
            raise stopped()
        with _member(self._waiting) as stop:
            yield stop

    @contextmanager
    def follow(self) -> Iterator[Stop]:
        """Count a follower of a job's event stream."""
        with _member(self._following) as stop:
            yield stop

    def end(self) -> None:
        """End all open requests now, and refuse callers that would wait."""
        self.stopping = True
        for stop in (*self._waiting, *self._following):
            if not stop.done():
                stop.set_result(None)


open_callers = OpenCallers()
"""Those of this process."""


def stopped() -> WorkerUnavailable:
    """The error of a caller whom a stopping shim cannot serve."""
    return WorkerUnavailable("This server is stopping; send the request again.", retry_after_s=RETRY_AFTER_S)


@contextmanager
def _member(members: set[Stop]) -> Iterator[Stop]:
    stop: Stop = asyncio.get_running_loop().create_future()
    members.add(stop)
    try:
        yield stop
    finally:
        members.discard(stop)
