"""Synchronous requests, from clients that wait and clients that disconnect."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests

from ourvidz.celery_settings import PRIORITY_SYNC
from ourvidz.errors import InternalError, OutOfMemory, WorkerLost, WorkerUnavailable
from ourvidz.following import Followers
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.limits.callers import CallerLimits
from ourvidz.records.record import StreamItem
from ourvidz.web import synchronous

HELLO = {"messages": [{"role": "user", "content": "What is a tide?"}]}


def only_record(shim):
    """The record of the only job of a shim."""
    (record,) = shim.ledger.page().records
    return record


def disconnect_after(url: str, path: str, body: dict, event: threading.Event) -> None:
    """Send a request, and close the connection once `event` is set."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("POST", path, json.dumps(body))
    assert event.wait(10)
    connection.close()


def test_a_request_returns_the_text_of_its_job(shim, chat_worker) -> None:
    """It is a job like any other, at the highest priority."""
    worker = chat_worker(shim.ledger)
    answer = shim.client.post("/chat", json=HELLO)
    assert answer.status_code == 200, answer.text
    assert answer.json()["response"] == "A tide is moving water."
    record = only_record(shim)
    assert (record.job_id, record.status, record.priority) == (
        answer.json()["job_id"],
        "completed",
        PRIORITY_SYNC,
    )
    assert worker.job.type == "chat_conversation"


def test_callbacks_are_sent_only_to_a_url_in_the_request(shim, chat_worker) -> None:
    """The caller has the response; one that names a URL receives callbacks too."""
    chat_worker(shim.ledger)
    without_url = shim.client.post("/chat", json=HELLO).json()["job_id"]
    with_url = shim.client.post(
        "/chat", json={**HELLO, "callback_url": shim.settings.default_callback_url}
    ).json()["job_id"]
    pending = {event.job_id for event in shim.ledger.list_events("pending")}
    assert with_url in pending
    assert without_url not in pending


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_cancels_the_running_job_within_a_second(shim, chat_worker, serve, stream) -> None:
    """Other jobs wait for the worker."""
    worker = chat_worker(shim.ledger, endless=True)
    disconnect_after(serve(shim), "/chat", {**HELLO, "stream": stream}, worker.text_streamed)
    assert worker.cancelled.wait(1.0)
    assert only_record(shim).status == "cancelled"


def test_a_disconnect_cancels_the_queued_job(shim, serve) -> None:
    """A job without a reader is not run."""
    connection = http.client.HTTPConnection(urlsplit(serve(shim)).netloc)
    connection.request("POST", "/chat", json.dumps(HELLO))
    ends = time.monotonic() + 5
    while not shim.ledger.queued("chat_queue"):
        assert time.monotonic() < ends
        time.sleep(0.005)
    connection.close()
    while only_record(shim).status != "cancelled":
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_at_the_deadline_the_text_so_far_is_returned_and_the_job_cancelled(open_shim, chat_worker) -> None:
    """Half an answer is worth more than none, and the rest is not generated."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.3)
    worker = chat_worker(shim.ledger, "A tide is", endless=True)
    answer = shim.client.post("/chat", json=HELLO)
    assert answer.status_code == 200
    assert (answer.json()["response"], answer.json()["finish_reason"]) == ("A tide is", "timeout")
    assert answer.json()["tokens_generated"] == 3
    assert worker.cancelled.wait(1.0)


def test_a_deadline_without_any_text_is_an_error(open_shim, chat_worker) -> None:
    """503 for a job that no worker claimed, 504 for one that was too slow."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.2)
    unclaimed = shim.client.post("/chat", json=HELLO)
    assert (unclaimed.status_code, unclaimed.json()["code"]) == (503, "WORKER_UNAVAILABLE")
    assert int(unclaimed.headers["retry-after"]) >= 1
    assert only_record(shim).status == "cancelled"
    chat_worker(shim.ledger, "", endless=True)
    slow = shim.client.post("/chat", json=HELLO)
    assert (slow.status_code, slow.json()["code"]) == (504, "TIMEOUT_ERROR")


def test_without_a_live_worker_a_request_fails_long_before_the_deadline(shim, monkeypatch) -> None:
    """The caller learns it within seconds."""
    monkeypatch.setattr(synchronous, "IDLE_S", 0.02)
    answer = shim.client.post("/chat", json=HELLO)
    assert (answer.status_code, answer.json()["code"]) == (503, "WORKER_UNAVAILABLE")


@pytest.mark.parametrize(
    ("stopped", "reason"),
    [("paused", "chat_queue is paused."), ("drained", "No worker of chat_queue is at work.")],
)
def test_a_queue_that_no_worker_claims_from_is_not_waited_for(shim, monkeypatch, stopped, reason) -> None:
    """An operator's pause may last hours: the request is refused with the reason, its job cancelled."""
    monkeypatch.setattr(synchronous, "IDLE_S", 0.02)
    shim.register_worker(id="chat@host-cpu", family="chat", queue="chat_queue", models=("chat",))
    if stopped == "paused":
        shim.ledger.set_paused("chat_queue", True)
    else:
        shim.ledger.set_draining("chat@host-cpu", True)
    answer = shim.client.post("/chat", json=HELLO)
    assert (answer.status_code, answer.json()["code"]) == (503, "WORKER_UNAVAILABLE")
    assert answer.json()["detail"] == reason
    assert only_record(shim).status == "cancelled"
    enhanced = shim.client.post("/enhance", json={"prompt": "a kite"}).json()
    assert (enhanced["enhancement_strategy"], enhanced["enhancement_reason"]) == ("fallback", reason)


def test_a_request_waits_for_a_live_worker_until_the_deadline(open_shim, monkeypatch) -> None:
    """The worker may be busy or loading its model."""
    monkeypatch.setattr(synchronous, "IDLE_S", 0.02)
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.3)
    shim.register_worker(id="chat@host-cpu", family="chat", queue="chat_queue", state="starting", models=())
    began = time.monotonic()
    assert shim.client.post("/chat", json=HELLO).status_code == 503
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(
    ("error", "status"),
    [(WorkerLost("gone"), 503), (OutOfMemory("no room"), 500), (WorkerUnavailable("away"), 503)],
)
def test_the_error_of_a_job_is_the_response_to_its_request(shim, chat_worker, error, status) -> None:
    """Callers branch on the code; a 503 has `Retry-After`."""
    chat_worker(shim.ledger, "", error=error)
    answer = shim.client.post("/chat", json=HELLO)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["success"], problem["code"], problem["error"]) == (False, error.code, error.message)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_a_lost_worker_is_replaced_for_a_request_that_does_not_stream(shim, serve, chat_worker) -> None:
    """The answer is the second attempt's text."""
    request = RunningRequest(shim, stream=False)
    first = shim.ledger.claim(request.job_id, 1, worker_id="w", lease_s=30, token="one")
    shim.ledger.step(first, items=[("token", {"text": "Half a "})])
    assert shim.ledger.rescue(first)
    chat_worker(shim.ledger)
    assert request.result().text == "A tide is moving water."


def test_a_lost_worker_ends_a_stream_with_an_error(shim) -> None:
    """Text that was sent cannot be taken back, and a second attempt would write another."""
    request = RunningRequest(shim, stream=True)
    first = shim.ledger.claim(request.job_id, 1, worker_id="w", lease_s=30, token="one")
    shim.ledger.step(first, items=[("token", {"text": "Half a "})])
    outcome = Outcome.failure(WorkerLost("gone"))
    assert shim.ledger.end(first, outcome=outcome)
    with pytest.raises(WorkerLost):
        request.result()


def test_a_stream_that_missed_parts_of_the_text_is_an_error(shim) -> None:
    """The ledger keeps the last items only: a slow reader may miss some."""
    request = RunningRequest(shim, stream=True)
    claim = shim.ledger.claim(request.job_id, 1, worker_id="w", lease_s=30, token="one")
    shim.ledger.step(claim, items=[("token", {"text": "water."})])
    text = Asset(type="text", metadata={"text": "A tide is water."})
    ended = Outcome(status="completed", assets=(text,))
    assert shim.ledger.end(claim, outcome=ended)
    with pytest.raises(InternalError):
        request.result()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_with_a_gap_has_the_whole_text_or_an_error(shim, monkeypatch, stream) -> None:
    """Its reader was too slow: a text without its middle is neither a partial text nor an answer."""
    items = [
        StreamItem("1-0", "token", {"text": "A tide "}),
        StreamItem("1-0", "gap", {"after": "1-0"}),
        StreamItem("1-0", "state", {"status": "processing", "run": 1, "attempt": 1, "stage": None}),
        StreamItem("9-0", "token", {"text": "water."}),
        StreamItem("9-1", "done", {"run": 1}),
    ]
    job_ended = threading.Event()

    async def follow(self: Followers, job_id: str):
        while not job_ended.is_set():
            await asyncio.sleep(0.001)
        for item in items:
            yield item

    monkeypatch.setattr(Followers, "follow", follow)
    request = RunningRequest(shim, stream=stream)
    text = Asset(type="text", metadata={"text": "A tide is moving water."})
    claim = shim.ledger.claim(request.job_id, 1, worker_id="w", lease_s=30, token="one")
    assert shim.ledger.end(claim, outcome=Outcome(status="completed", assets=(text,)))
    job_ended.set()
    if stream:
        with pytest.raises(InternalError, match="A part of the answer was lost"):
            request.result()
    else:
        assert request.result().text == "A tide is moving water."


def test_a_hundred_waiting_requests_do_not_block_the_shim(shim_with_broker, chat_worker, serve) -> None:
    """A waiting request holds no thread; all of them are answered."""
    url = serve(shim_with_broker)
    with ThreadPoolExecutor(100) as clients:
        answers = [clients.submit(requests.post, f"{url}/chat", json=HELLO) for _ in range(100)]
        ends = time.monotonic() + 30
        while shim_with_broker.ledger.queue_depth("chat_queue") < 100:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert requests.get(f"{url}/health/live", timeout=5).status_code == 200
        chat_worker(shim_with_broker.ledger)
        responses = [answer.result() for answer in answers]
    assert [answer.status_code for answer in responses] == [200] * 100
    assert len({answer.json()["job_id"] for answer in responses}) == 100


class RunningRequest:
    """A synchronous job that was submitted, without an HTTP request around it."""

    def __init__(self, shim, *, stream: bool) -> None:
        payload = {**HELLO, "id": "job-9", "type": "chat", "stream": stream}
        self.job_id = "job-9"
        self._shim = shim
        self._job = parse(payload, Defaults())
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._read())
        while shim.ledger.get(self.job_id) is None and not self._task.done():
            self._loop.run_until_complete(asyncio.sleep(0.001))

    async def _read(self) -> synchronous.TextResult:
        limits = CallerLimits(self._shim.settings, key="local", address="", route_class="sync")
        return await synchronous.read_result(synchronous.stream_text(self._job, limits))

    def result(self) -> synchronous.TextResult:
        """The result of the job. Raises its error."""
        try:
            return self._loop.run_until_complete(asyncio.wait_for(self._task, 10))
        finally:
            self._loop.close()
