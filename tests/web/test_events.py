"""The event stream of a job."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ourvidz.errors import InvalidParameters, OutOfMemory, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.memory_store import MemoryLedger
from ourvidz.web import events


def parsed(text: str) -> list[dict[str, Any]]:
    """The events in a stream's text; comments and settings are left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


@pytest.fixture(params=["memory", "redis"])
def told(request, shim) -> Any:
    """A shim with one job that has been through everything, on both ledgers."""
    told = shim if request.param == "memory" else request.getfixturevalue("real_shim")
    told.submit()
    claim = told.claim("job-1")
    items = [("token", {"text": "a"}), ("preview", {"webp": "UklGRg=="})]
    told.ledger.step(claim, progress=40, items=[("progress", {"progress": 40}), *items])
    assert told.ledger.end("job-1", run=1, fence=claim.fence, outcome=told.completed())
    return told


def test_the_stream_tells_everything_in_order_and_ends(told) -> None:
    """A page that opens late still sees the whole story."""
    answer = told.client.get("/jobs/job-1/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [event["event"] for event in parsed(answer.text)]
    assert kinds[0] == "state"
    assert {"progress", "token", "preview"} <= set(kinds)
    assert kinds[-1] == "done"
    assert kinds.count("done") == 1


def test_the_ids_are_the_ledgers(told) -> None:
    """They are what a reader resumes by."""
    ids = [event["id"] for event in parsed(told.client.get("/jobs/job-1/events").text)]
    assert ids == [item.id for item in told.ledger.stream("job-1")]


def test_a_reader_resumes_after_the_last_event_it_saw(told) -> None:
    """Nothing is repeated, nothing is missed."""
    everything = parsed(told.client.get("/jobs/job-1/events").text)
    for seen in range(1, len(everything)):
        headers = {"Last-Event-ID": everything[seen - 1]["id"]}
        assert parsed(told.client.get("/jobs/job-1/events", headers=headers).text) == everything[seen:]


def test_a_reader_that_saw_the_end_is_sent_away(told) -> None:
    """An EventSource reconnects for ever unless it is told 204."""
    last = parsed(told.client.get("/jobs/job-1/events").text)[-1]["id"]
    assert told.client.get("/jobs/job-1/events", headers={"Last-Event-ID": last}).status_code == 204


@pytest.mark.parametrize("given", ["x", "1-2-3", "-", "9" * 40, "１"])
def test_a_last_event_id_that_is_none_is_refused(given: str) -> None:
    """Better than silently starting over."""
    with pytest.raises(InvalidParameters):
        events.resume_from(given)


def test_no_last_event_id_starts_at_the_beginning() -> None:
    """Also an empty header, as some clients send."""
    assert events.resume_from(None) == events.resume_from(" ") == events.BEGINNING


class Silent(MemoryLedger):
    """Says nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.speak = asyncio.Event()

    async def follow(self, job_id: str, *, after: str = "0") -> Any:
        await self.speak.wait()
        raise WorkerUnavailable("away")
        yield


def test_a_silent_stream_is_kept_alive_and_ends_when_the_ledger_goes_away() -> None:
    """Proxies cut quiet connections; a cut stream is resumed by the client."""

    async def listen() -> list[bytes]:
        ledger = Silent()
        heard = []
        async for chunk in events.stream(ledger, "job-1", after="0", keep_alive_s=0.001):
            heard.append(chunk)
            if heard.count(events.KEEP_ALIVE) == 3:
                ledger.speak.set()
        return heard

    assert asyncio.run(listen()).count(events.KEEP_ALIVE) >= 3


def test_a_reader_that_leaves_stops_the_following() -> None:
    """Ten thousand closed tabs must not leave ten thousand readers behind."""

    async def leave() -> int:
        stream = events.stream(Silent(), "job-1", after="0", keep_alive_s=0.001)
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        return len(asyncio.all_tasks())

    assert asyncio.run(leave()) == 1


def test_a_job_whose_stream_is_forgotten_still_ends(shim) -> None:
    """The stream is kept for less time than the record."""
    shim.submit()
    shim.end("job-1", shim.completed())

    async def listen() -> str:
        ledger = MemoryLedger()
        ledger.get = shim.ledger.get  # type: ignore[method-assign]
        return b"".join([chunk async for chunk in events.stream(ledger, "job-1", after="0")]).decode()

    assert parsed(asyncio.run(listen())) == [{"event": "done", "data": {"status": "completed", "run": 1}}]


def test_the_end_of_an_earlier_run_is_told_as_a_state(shim) -> None:
    """A reader that leaves at `done` must not leave before the retry has ended."""
    shim.submit()
    claim = shim.claim("job-1")
    failed = Outcome.failure(OutOfMemory("no room"))
    assert shim.ledger.end("job-1", run=1, fence=claim.fence, outcome=failed)
    shim.ledger.reopen("job-1", priority=6)
    second = shim.ledger.claim("job-1", 2, worker_id="w", lease_s=10, token="second")
    assert second is not None
    assert shim.ledger.end("job-1", run=2, fence=second.fence, outcome=shim.completed())
    heard = parsed(shim.client.get("/jobs/job-1/events").text)
    statuses = [(event["event"], event["data"]["status"]) for event in heard if "status" in event["data"]]
    assert ("state", "failed") in statuses
    assert [status for kind, status in statuses if kind == "done"] == ["completed"]
