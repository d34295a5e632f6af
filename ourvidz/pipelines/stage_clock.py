"""Measures how long a pipeline occupies its device, by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LOAD = "load"
"""The stage of loading and waking a model: jobs share it."""
_PAUSE = "pause"


class StageClock:
    """Seconds by stage since they were last taken. A stage inside another one does not count for the outer.

    For one thread. On a GPU, kernels that are still queued at the end of a stage count for the next one.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._stages: list[str] = []
        self._since = 0.0
        self._owed_load_s = 0.0
        self.paused_s = 0.0
        """How long it was paused in all: waits for the device, and what was moved then."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside this context for a stage, also when it raises."""
        self._count()
        self._stages.append(name)
        try:
            yield
        finally:
            self._count()
            self._stages.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count the time inside this context for no stage: the job waits. Stages inside it count."""
        began = self._clock()
        try:
            with self.stage(_PAUSE):
                yield
        finally:
            self._seconds.pop(_PAUSE, None)
            self.paused_s += self._clock() - began

    def take(self) -> dict[str, float]:
        """The seconds by stage since the last call, for one job.

        Of the loading it gets at most as many seconds as it computed itself; what is left is shared by the
        next jobs, until the whole of it is assigned.
        """
        seconds, self._seconds = self._seconds, defaultdict(float)
        self._owed_load_s += seconds.pop(LOAD, 0.0)
        load_s = min(self._owed_load_s, sum(seconds.values()))
        self._owed_load_s -= load_s
        return dict(seconds) | ({LOAD: load_s} if load_s else {})

    def give_back(self, seconds: Mapping[str, float]) -> None:
        """Count what was taken for the next job that takes: another one came in between."""
        for stage, taken_s in seconds.items():
            self._seconds[stage] += taken_s

    def _count(self) -> None:
        now = self._clock()
        if self._stages:
            self._seconds[self._stages[-1]] += now - self._since
        self._since = now


def measured(stage: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorator for methods of a pipeline: their time counts for this stage of its `clock`."""

    def decorate(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(method)
        def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            pipeline: Any = args[0]
            with pipeline.clock.stage(stage):
                return method(*args, **kwargs)

        return wrapper

    return decorate
