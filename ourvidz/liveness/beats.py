"""Beats: files by which the parts of a process show to its supervisor that they are alive.

A part is a thread or an event loop. It changes the time of its file, and the supervisor watches for changes
on its own monotonic clock: clocks that are set do not matter. Changing a time needs no space on the disk.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

from ourvidz import log

BEAT_INTERVAL_S = 1.0
SUSPENDED_S = 10.0
"""A supervisor that has not looked for this long was itself suspended, perhaps with what it watches."""

_log = log.get(__name__)


class Beat:
    """The beat of one part of this process; without a folder it does nothing."""

    def __init__(self, folder: Path | None, part: str) -> None:
        self._path = None if folder is None else folder / part
        self._next_at = 0.0

    def __call__(self) -> None:
        """Show that this part is alive: at most once a second, and never raises."""
        now = time.monotonic()
        if self._path is None or now < self._next_at:
            return
        self._next_at = now + BEAT_INTERVAL_S
        try:
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self._path.touch()
        except OSError as error:
            _log.debug("beat_not_written", part=self._path.name, error=str(error))


def start_beating(folder: Path | None, part: str) -> None:
    """Beat from a thread for as long as this process runs: it stops when the process is frozen, or when a
    call that hangs keeps all other threads from running."""
    if folder is None:
        return
    beat = Beat(folder, part)

    def repeat() -> None:
        while True:
            beat()
            time.sleep(BEAT_INTERVAL_S)

    threading.Thread(target=repeat, name=f"beat-{part}", daemon=True).start()


def beat_ages(folder: Path) -> dict[str, float]:
    """Part → seconds since its last beat, by the system clock: for a check that looks once only.

    A clock that is set forward makes all parts old until their next beat, a second later.
    """
    now = time.time()
    return {part: now - changed / 1e9 for part, changed in _read_beats(folder)}


def _read_beats(folder: Path) -> list[tuple[str, int]]:
    """Every part with the time of its file in nanoseconds; nothing where the folder does not exist."""
    try:
        return [(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(folder)]
    except OSError:
        return []


class BeatMonitor:
    """Watches the beats of one process from outside. A part counts from its first beat on."""

    def __init__(self, folder: Path, *, hang_s: float) -> None:
        self._folder = folder
        self._hang_s = hang_s
        self._seen: dict[str, tuple[int, float]] = {}
        """Part → time of its file, and when that was last seen to change."""
        self._looked_at: float | None = None

    def reset(self) -> None:
        """Forget all parts, before the process starts."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._seen.clear()
        self._looked_at = None

    def silent_part(self, now: float) -> str | None:
        """Return the name of a part without a beat for `hang_s`; None when all are alive.

        `now` is a time of the monotonic clock. To be called several times within `SUSPENDED_S`.
        """
        if self._looked_at is not None and now - self._looked_at > SUSPENDED_S:
            self._seen = {part: (changed, now) for part, (changed, _) in self._seen.items()}
        self._looked_at = now
        for part, changed in _read_beats(self._folder):
            if self._seen.get(part, (None, 0.0))[0] != changed:
                self._seen[part] = changed, now
        return next((part for part, (_, at) in self._seen.items() if now - at > self._hang_s), None)
