"""A file that `ourvidz up` deletes when its disk is full, so that the embedded Redis server can still write.

The server exits when it cannot write. New jobs are refused long before (`liveness/capacity.py`); the space of
this file is for what the accepted jobs still write when something else has filled the disk.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ourvidz.liveness.capacity import MIN_DISK_BYTES

RESERVE_BYTES = 32 << 20
RELEASE_BELOW_BYTES = 8 << 20
"""Free space below which the file is deleted."""
CHECK_INTERVAL_S = 0.2


class DiskReserve:
    """The reserve at `path`. `notify` gets a line of text when it is used and when it is complete again."""

    def __init__(self, path: Path, *, notify: Callable[[str], None], size: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size = size
        self._notify = notify
        self._released = False

    def check(self) -> None:
        """Delete the file if the disk is full; write it if there is space for it. Raises nothing: a disk that
        fails is reported by the processes that write there."""
        try:
            free = shutil.disk_usage(self._path.parent).free
            exists = self._path.exists()
            if exists and free < RELEASE_BELOW_BYTES:
                self._path.unlink()
                self._released = True
                self._notify(f"the disk of {self._path.parent} is full: the reserve was released, free space")
            elif not exists and free > MIN_DISK_BYTES + self._size:
                self._allocate()
                if self._released:
                    self._released = False
                    self._notify(f"the disk of {self._path.parent} has space again")
        except OSError:
            return

    def start(self) -> None:
        """Check from a thread for as long as this process runs."""

        def repeat() -> None:
            while True:
                self.check()
                time.sleep(CHECK_INTERVAL_S)

        threading.Thread(target=repeat, name="disk-reserve", daemon=True).start()

    def _allocate(self) -> None:
        """Write the whole file, then give it its name: a sparse or partial one would reserve nothing."""
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                _fill(file.fileno(), self._size)
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)


def _fill(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        os.write(descriptor, block[: size - start])
