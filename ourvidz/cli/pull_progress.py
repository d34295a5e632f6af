"""Progress of `ourvidz models pull` on standard error: a bar for each file on a terminal, otherwise lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ourvidz.cli.console import print_note
from ourvidz.hub.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

LINE_INTERVAL_S = 15.0
"""How often a file that is being downloaded has a line, where there is no terminal."""
SMALL_BYTES = 1_000_000
"""Files up to this size have no line and no bar of their own."""


def size_text(count: float) -> str:
    """A number of bytes in the unit that suits it, such as `6.9 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Lines:
    """One line when a file begins, at intervals, and when it is complete; implements `Progress`."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._name, self._size, self._done, self._shown_at = "", 0, 0, 0.0

    def note(self, line: str) -> None:
        print_note(f"{self._label}: {line}")

    def begin(self, name: str, size: int, done: int) -> None:
        self._name, self._size, self._done = name, size, done
        self._show("continues" if done else "begins")

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._shown_at > LINE_INTERVAL_S:
            self._show(f"{size_text(self._done)} of")

    def end(self) -> None:
        self._show("complete,")

    def _show(self, text: str) -> None:
        self._shown_at = time.monotonic()
        if self._size > SMALL_BYTES:
            print_note(f"{self._label}: {self._name}: {text} {size_text(self._size)}")


class _Bars:
    """One bar for each large file; implements `Progress`."""

    def __init__(self, label: str, bars: Bars) -> None:
        self._label = label
        self._bars = bars
        self._small = self._task = bars.add_task(label, total=None, visible=False)

    def note(self, line: str) -> None:
        self._bars.console.print(f"{self._label}: {line}", markup=False, highlight=False)

    def begin(self, name: str, size: int, done: int) -> None:
        self._task = self._small
        if size > SMALL_BYTES:
            self._task = self._bars.add_task(f"{self._label}: {name}", total=size, completed=done)

    def advance(self, count: int) -> None:
        self._bars.advance(self._task, count)

    def end(self) -> None:
        """The bar stays, full."""


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Show the progress of a pull on standard error."""
    if not sys.stderr.isatty():
        yield Lines(label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        yield _Bars(label, bars)
