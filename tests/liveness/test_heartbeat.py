"""The heartbeat of one worker."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from ourvidz.errors import WorkerUnavailable
from ourvidz.liveness.heartbeat import BEATS_PER_PRESENCE, Heartbeat
from ourvidz.records.record import Worker


class RecordingLedger:
    """Records the rows it is sent; raises `error` instead while one is set."""

    def __init__(self) -> None:
        self.rows: list[Worker] = []
        self.left: list[str] = []
        self.error: Exception | None = None
        self.outcomes: SimpleQueue[Worker | Exception] = SimpleQueue()
        """What became of each heartbeat."""

    def heartbeat(self, worker: Worker) -> None:
        error = self.error
        self.outcomes.put(error or worker)
        if error is not None:
            raise error
        self.rows.append(worker)

    def mark_offline(self, worker_id: str) -> None:
        if self.error is not None:
            raise self.error
        self.left.append(worker_id)


@pytest.fixture
def ledger() -> RecordingLedger:
    return RecordingLedger()


@pytest.fixture
def start(ledger: RecordingLedger) -> Iterator[Any]:
    """Start heartbeats; they stop with the test."""
    started: list[Heartbeat] = []

    def build(presence_s: float = 1000.0) -> Heartbeat:
        heartbeat = Heartbeat(
            ledger,  # type: ignore[arg-type]
            worker_id="sdxl@host",
            family="sdxl",
            queue="sdxl_queue",
            pid=7,
            gpu="0",
            presence_s=presence_s,
        )
        heartbeat.start()
        started.append(heartbeat)
        return heartbeat

    yield build
    ledger.error = None
    for heartbeat in started:
        heartbeat.stop()


def test_a_worker_is_there_as_soon_as_it_starts(start: Any, ledger: RecordingLedger) -> None:
    """Loading the models comes after it and may take minutes."""
    start()
    (row,) = ledger.rows
    assert (row.id, row.family, row.queue, row.pid, row.gpu) == ("sdxl@host", "sdxl", "sdxl_queue", 7, "0")
    assert (row.state, row.models) == ("starting", ())


def test_a_heartbeat_is_repeated_several_times_within_the_presence_time(
    start: Any, ledger: RecordingLedger
) -> None:
    """One or two may get lost before the worker counts as offline."""
    assert BEATS_PER_PRESENCE > 2
    start(presence_s=0.05)
    for _ in range(4):
        assert isinstance(ledger.outcomes.get(timeout=10), Worker)


def test_an_update_is_sent_at_once_and_keeps_what_it_does_not_name(
    start: Any, ledger: RecordingLedger
) -> None:
    """Models and details come from different moments of a start."""
    heartbeat = start()
    heartbeat.update("idle", models=("sdxl",), info={"sdxl": {}})
    heartbeat.update("busy", error="none")
    row = ledger.rows[-1]
    assert len(ledger.rows) == 3
    assert (row.state, row.models, row.detail) == ("busy", ("sdxl",), {"info": {"sdxl": {}}, "error": "none"})


def test_a_state_alone_waits_for_the_next_heartbeat(start: Any, ledger: RecordingLedger) -> None:
    """Short jobs come by the hundred a second; a round trip for each would cost more than the job."""
    heartbeat = start()
    heartbeat.set_state("busy")
    assert len(ledger.rows) == 1
    heartbeat.update("idle")
    assert [row.state for row in ledger.rows] == ["starting", "idle"]


@pytest.mark.parametrize("error", [WorkerUnavailable("away"), RuntimeError("a broken row")])
def test_no_error_ends_the_heartbeats(start: Any, ledger: RecordingLedger, error: Exception) -> None:
    """A live worker must not look dead for ever."""
    start(presence_s=0.05)
    ledger.error = error
    while ledger.outcomes.get(timeout=10) is not error:
        continue
    ledger.error = None
    while not isinstance(ledger.outcomes.get(timeout=10), Worker):
        continue


def test_a_stopped_worker_is_offline_at_once(start: Any, ledger: RecordingLedger) -> None:
    """A ledger that is away then is no reason to hang or to fail."""
    heartbeat = start()
    heartbeat.stop()
    assert ledger.left == ["sdxl@host"]
    ledger.error = WorkerUnavailable("away")
    heartbeat.stop()
