"""The order in which `ourvidz up` starts its processes: the first picture as soon as possible."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable

from ourvidz.cli.supervisor import ProcessSpec
from ourvidz.cli.worker import FAMILIES

IMPORT_S = 15.0
"""How long the processes that are next wait for one that imports its libraries, or cannot."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StaggeredStart:
    """Starts processes in a given order; workers and Flower, which import large libraries, few at a time.

    On two processors three workers that start together are all ready after the time of three. At first one
    processor is left to the processes that import little. start: starts one process. clock: seconds.
    """

    def __init__(
        self,
        specs: Iterable[ProcessSpec],
        start: Callable[[ProcessSpec], None],
        *,
        processors: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting = deque(specs)
        self._start = start
        self._processors = processors
        self._clock = clock
        self._importing: dict[str, float] = {}
        """Name of a process that may be importing → when it no longer counts."""

    def advance(self, imported: Collection[str] = ()) -> None:
        """Start what is due. `imported`: the names of the workers that have imported their libraries."""
        now = self._clock()
        self._importing = {
            name: until for name, until in self._importing.items() if name not in imported and now < until
        }
        at_once = self._processors if imported else max(1, self._processors - 1)
        while self._waiting:
            name = self._waiting[0].name
            if name in FAMILIES or name == "flower":
                if len(self._importing) >= at_once:
                    return
                self._importing[name] = now + IMPORT_S
            self._start(self._waiting.popleft())
