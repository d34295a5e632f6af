"""How a pull reports what it does."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told what a pull does."""

    def note(self, line: str) -> None:
        """Something an operator should read."""

    def begin(self, name: str, size: int, done: int) -> None:
        """A file of `size` bytes is downloaded, of which `done` are there already."""

    def advance(self, count: int) -> None:
        """Bytes have arrived; negative if bytes must be downloaded again."""

    def end(self) -> None:
        """The file is complete."""
