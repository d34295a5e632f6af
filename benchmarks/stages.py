"""How long named stages of some work take, whichever thread they run on."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any


class Stopwatch:
    """Adds up wall seconds by stage. A stage that calls itself counts once."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, float]] = []
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
        self._rounds.append(defaultdict(float))
        yield

    def medians(self) -> dict[str, float]:
        """Median seconds a round, by stage."""
        names = dict.fromkeys(name for one in self._rounds for name in one)
        return {name: statistics.median(one.get(name, 0.0) for one in self._rounds) for name in names}

    def add(self, stage: str, seconds: float) -> None:
        """Count some seconds for a stage of this round."""
        with self._adding:
            self._rounds[-1][stage] += seconds

    def _timed(self, run: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @wraps(run)
        def timed(*given: Any, **named: Any) -> Any:
            if getattr(self._inside, stage, False):
                return run(*given, **named)
            setattr(self._inside, stage, True)
            started = time.perf_counter()
            try:
                return run(*given, **named)
            finally:
                self.add(stage, time.perf_counter() - started)
                setattr(self._inside, stage, False)

        return timed
