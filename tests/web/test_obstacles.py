"""Why no worker can claim the jobs of a queue: one answer of the ledger serves many callers."""

from __future__ import annotations

import pytest

from ourvidz.ledger.store import Ledger
from ourvidz.web import obstacles
from ourvidz.web.obstacles import QueueObstacles
from tests.factories import worker


class CountingLedger(Ledger):
    """Counts how often the workers are read."""

    reads = 0

    def active_workers(self, **filters):
        self.reads += 1
        return super().active_workers(**filters)


def test_thousands_of_callers_ask_the_ledger_once_a_second(
    make_ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them asks every few seconds."""
    ledger = make_ledger(CountingLedger)
    found = QueueObstacles()
    missing = "No worker of chat_queue is at work."
    assert [found.read(ledger, "chat_queue").reason for _ in range(100)] == [missing] * 100
    assert ledger.reads == 1
    assert found.recent(ledger, "chat_queue") is not None
    ledger.heartbeat(worker("chat", id="chat@host-cpu"))
    monkeypatch.setattr(obstacles, "KEPT_S", 0.0)
    assert found.recent(ledger, "chat_queue") is None
    assert found.read(ledger, "chat_queue").reason is None


def test_each_queue_and_ledger_has_an_answer_of_its_own(make_ledger) -> None:
    """A caller of one queue must not be told about another."""
    ledger, other = make_ledger(), make_ledger()
    ledger.heartbeat(worker("chat", id="chat@host-cpu"))
    found = QueueObstacles()
    assert found.read(ledger, "chat_queue").reason is None
    assert found.read(ledger, "wan_queue").reason == "No worker of wan_queue is at work."
    assert found.read(other, "chat_queue").reason == "No worker of chat_queue is at work."
