"""What makes a process start sooner: imports without garbage collection and without unused libraries."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Phase = Literal["imported", "connected", "loaded", "ready"]
"""The phases of a start, in order; no process has all of them."""

_imported_at = time.monotonic()
_ends: dict[Phase, float] = {}


def mark(phase: Phase) -> None:
    """Note that this process has finished a phase of its start. The first time counts."""
    _ends.setdefault(phase, _age_s())


def phases() -> dict[str, float]:
    """Return the seconds from the start of this process to the end of each phase, such as `imported_s`."""
    return {f"{phase}_s": round(end_s, 3) for phase, end_s in _ends.items()}


def _age_s() -> float:
    """Return how long this process has run; without Linux's `/proc`, how long this module is imported."""
    try:
        started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - _imported_at
    return age_s


@contextmanager
def collector_paused() -> Iterator[None]:
    """Import inside this context without garbage collection, and exempt what was imported from it for good.

    Modules, classes and functions are never garbage, but each import of a large library makes the collector
    visit all of them several times: a third of the time that torch and diffusers take to import. Does nothing
    inside another such context.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Make an optional library look as if it were not installed, for the imports inside this context. One
    that is imported already stays visible."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
