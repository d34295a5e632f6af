"""The order in which the processes of a stack are started."""

from __future__ import annotations

from pathlib import Path

import pytest

from ourvidz.cli import stack
from ourvidz.cli.start_order import IMPORT_S, StaggeredStart
from ourvidz.cli.state import StateDir

ENDPOINTS = stack.Endpoints("http://127.0.0.1:1", "redis://127.0.0.1:2/0", 5555, ())
FIRST = ["sdxl", "web", "io", "keeper"]
"""What the jobs of the first family need."""


class Start:
    """A staggered start of all families, on a clock that the test sets."""

    def __init__(self, folder: Path, processors: int) -> None:
        self.now = 0.0
        self.started: list[str] = []
        specs = stack.process_specs(("sdxl", "wan", "chat"), StateDir(folder), ENDPOINTS, {})
        self._order = StaggeredStart(
            specs, lambda spec: self.started.append(spec.name), processors=processors, clock=lambda: self.now
        )
        self._order.advance()

    def advance(self, *imported: str) -> list[str]:
        """The processes that this call starts."""
        known = len(self.started)
        self._order.advance(imported)
        return self.started[known:]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return Start(tmp_path, 2)


def test_what_the_first_picture_needs_is_started_at_once(start: Start) -> None:
    """The other workers' imports would take half of the processors meanwhile."""
    assert start.started == FIRST
    assert start.advance() == []


def test_the_other_workers_are_started_when_the_first_has_imported_its_libraries(start: Start) -> None:
    """As many as there are processors; Flower comes last."""
    assert start.advance("sdxl") == ["wan", "chat"]
    assert start.advance("sdxl") == []
    assert start.advance("sdxl", "chat") == ["flower"]


def test_on_one_processor_workers_are_started_one_by_one(tmp_path: Path) -> None:
    """Each loads its models while the next one imports."""
    start = Start(tmp_path, 1)
    assert start.started == FIRST
    assert start.advance("sdxl") == ["wan"]
    assert start.advance("sdxl") == []
    assert start.advance("sdxl", "wan") == ["chat"]


def test_a_worker_that_does_not_come_up_keeps_the_others_waiting_for_a_while_only(start: Start) -> None:
    """Its settings may be refused, and the others' are not."""
    start.now = IMPORT_S
    assert start.advance() == ["wan"]


def test_where_there_are_processors_enough_all_are_started_at_once(tmp_path: Path) -> None:
    """A stack of large models loads them side by side."""
    assert Start(tmp_path, 5).started == [*FIRST, "wan", "chat", "flower"]
