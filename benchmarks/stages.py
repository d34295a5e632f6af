"""How long named stages of some work take, whichever thread they run on."""

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
class Taken:
    """Seconds by the clock, and of processors."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: Taken) -> Taken:
        return Taken(self.wall - other.wall, self.processor - other.processor)


def median(runs: Iterable[Taken]) -> Taken:
    """The median of each clock."""
    both = list(runs)
    return Taken(
        statistics.median(run.wall for run in both), statistics.median(run.processor for run in both)
    )


class Stopwatch:
    """Adds up what stages take: by the clock, and of the thread that runs them. A stage that calls itself
    counts once."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, Taken]] = []
        self._adding = threading.Lock()
        self._inside = threading.local()

    @contextmanager
    def watching(self, *places: tuple[object, str, str]) -> Iterator[None]:
        """For a while, time every call of these: (owner, attribute, stage) each."""
        with ExitStack() as undo:
            for owner, name, stage in places:
                own = vars(owner).get(name)
                setattr(owner, name, self._timed(getattr(owner, name), stage))
                undo.callback(setattr, owner, name, own) if own else undo.callback(delattr, owner, name)
            yield

    @contextmanager
    def round(self) -> Iterator[None]:
        """One piece of work: its stages are added up."""
        self._rounds.append(defaultdict(Taken))
        yield

    def medians(self) -> dict[str, Taken]:
        """The median round, by stage."""
        names = dict.fromkeys(name for one in self._rounds for name in one)
        return {name: median(one.get(name, Taken()) for one in self._rounds) for name in names}

    def add(self, stage: str, taken: Taken) -> None:
        """Count this for a stage of this round."""
        with self._adding:
            self._rounds[-1][stage] += taken

    def _timed(self, run: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @wraps(run)
        def timed(*given: Any, **named: Any) -> Any:
            if getattr(self._inside, stage, False):
                return run(*given, **named)
            setattr(self._inside, stage, True)
            started = Taken(time.perf_counter(), time.thread_time())
            try:
                return run(*given, **named)
            finally:
                self.add(stage, Taken(time.perf_counter(), time.thread_time()) - started)
                setattr(self._inside, stage, False)

        return timed
