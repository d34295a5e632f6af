"""What is moved to and from a device."""

from __future__ import annotations

from typing import Protocol

from ourvidz.records.devices import Part


class Movable(Protocol):
    """A part of a model that is moved as a whole. Its methods are called on one thread at a time."""

    @property
    def part(self) -> Part:
        """Its name, the memory that it needs on the device, and how long it takes to bring it back."""

    def load(self) -> None:
        """Bring it onto the device, from disk or from the memory of the host. Raises `ModelLoadError`, or
        torch's error for a full device."""

    def sleep(self) -> None:
        """Move it to the memory of the host."""

    def unload(self) -> None:
        """Free it, wherever it is. Idempotent."""
