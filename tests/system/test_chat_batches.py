"""Many requests at once: one chat worker that decodes several texts together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import requests

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

CLIENTS = 100
COLOURS = ("red", "blue", "green", "yellow", "white")


def test_simultaneous_requests_get_their_own_answers_and_start_in_order(
    stacks: Callable[..., Any], tmp_path: Path
) -> None:
    """A hundred requests at the same moment: each gets the answer to its own question, and jobs that join a
    batch do not start before earlier ones."""
    start = Barrier(CLIENTS)

    def ask(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"a {COLOURS[number % len(COLOURS)]} star on a hill"}]
        start.wait()
        body = {"messages": messages, "max_tokens": 24, "temperature": 0}
        answer = requests.post(f"{running.shim}/chat", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    with stacks(tmp_path / "state", "--workers", "chat") as running, ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(ask, range(CLIENTS)))
        records = [running.record(answer["job_id"]) for answer in answers]
    for colour in range(len(COLOURS)):
        assert len({answer["response"] for answer in answers[colour :: len(COLOURS)]}) == 1
    assert len({answer["response"] for answer in answers[: len(COLOURS)]}) == len(COLOURS)
    assert {(record.status, record.attempt) for record in records} == {("completed", 1)}
    starts = [record.claimed_at for record in sorted(records, key=lambda record: record.order)]
    assert starts == sorted(starts)
