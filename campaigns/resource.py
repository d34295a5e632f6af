"""What a campaign starts and stops again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self


class Resource(ABC):
    """A context manager that consists of others.

    What `_open` adds to `_cleanup` is undone at the end, the last first, also if `_open` fails half-way. An
    error that leaves the context gets the ends of the logs as a note.
    """

    def __init__(self) -> None:
        self._cleanup = ExitStack()

    @abstractmethod
    def _open(self) -> None:
        """Start everything."""

    def logs(self) -> list[Path]:
        """The files to which the processes write."""
        return []

    def log_tails(self, lines: int = 25) -> str:
        """The last lines of every log; empty where there are none."""
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
            for log in self.logs()
            if log.exists()
        )

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (tails := self.log_tails()):
            error.add_note(tails)
        self._cleanup.close()
