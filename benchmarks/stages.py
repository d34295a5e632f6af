"""Measures how long the named stages of some work take, on all threads."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of wall-clock time and of processor time."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: Duration) -> Duration:
        return Duration(self.wall - other.wall, self.processor - other.processor)


def median(measured: Iterable[Duration]) -> Duration:
    """The median of the wall-clock times, and the median of the processor times."""
    durations = list(measured)
    return Duration(
        statistics.median(duration.wall for duration in durations),
        statistics.median(duration.processor for duration in durations),
    )


class Stopwatch:
    """Adds up the duration of stages in rounds: wall-clock time, and processor time of the thread that runs
    them. A call of a stage inside itself is not counted again."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, Duration]] = []
        self._lock = threading.Lock()
        self._active = threading.local()

    @contextmanager
    def timing(self, *functions: tuple[object, str, str]) -> Iterator[None]:
        """Time every call of some functions inside the `with` block. Each is (owner, attribute, stage)."""
        with ExitStack() as undo:
            for owner, name, stage in functions:
                original = vars(owner).get(name)
                setattr(owner, name, self._timed(getattr(owner, name), stage))
                if original:
                    undo.callback(setattr, owner, name, original)
                else:
                    undo.callback(delattr, owner, name)
            yield

    @contextmanager
    def round(self) -> Iterator[None]:
        """One round of the work; durations inside the `with` block are added up by stage."""
        self._rounds.append(defaultdict(Duration))
        yield

    def medians(self) -> dict[str, Duration]:
        """For each stage, the median of its durations over all rounds."""
        names = dict.fromkeys(name for stages in self._rounds for name in stages)
        return {name: median(stages.get(name, Duration()) for stages in self._rounds) for name in names}

    def add(self, stage: str, duration: Duration) -> None:
        """Add a duration to a stage of the current round. Thread-safe."""
        with self._lock:
            self._rounds[-1][stage] += duration

    def _timed(self, run: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @wraps(run)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._active, stage, False):
                return run(*args, **kwargs)
            setattr(self._active, stage, True)
            started = Duration(time.perf_counter(), time.thread_time())
            try:
                return run(*args, **kwargs)
            finally:
                self.add(stage, Duration(time.perf_counter(), time.thread_time()) - started)
                setattr(self._active, stage, False)

        return timed
