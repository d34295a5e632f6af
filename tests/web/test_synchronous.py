"""Requests that wait for their job: over a real ledger, from clients that stay and clients that leave."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests

from ourvidz.celery_settings import PRIORITY_SYNC
from ourvidz.errors import InternalError, OutOfMemory, WorkerLost, WorkerUnavailable
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.web import synchronous

HELLO = {"messages": [{"role": "user", "content": "What is a tide?"}]}


@pytest.fixture(params=["memory", "redis"])
def any_shim(request) -> object:
    """A shim on each of the ledgers."""
    return request.getfixturevalue("shim" if request.param == "memory" else "real_shim")


def only_record(shim):
    """The one job of a shim."""
    (record,) = shim.ledger.page().records
    return record


def hang_up_after(url: str, path: str, body: dict, speaking) -> None:
    """Send a request, and close the connection once the worker speaks."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("POST", path, json.dumps(body))
    assert speaking.wait(10)
    connection.close()


def test_a_request_waits_for_its_text(any_shim, chat_worker) -> None:
    """It is a job like any other, before all others, and nobody is called back."""
    worker = chat_worker(any_shim.ledger)
    answer = any_shim.client.post("/chat", json=HELLO)
    assert answer.status_code == 200, answer.text
    assert answer.json()["response"] == "A tide is moving water."
    record = only_record(any_shim)
    assert (record.job_id, record.status, record.priority) == (
        answer.json()["job_id"],
        "completed",
        PRIORITY_SYNC,
    )
    assert worker.job.type == "chat_conversation"


def test_nobody_is_called_back_unless_asked_for(any_shim, chat_worker) -> None:
    """The caller has the answer in its hands; one that names a URL wants it there as well."""
    chat_worker(any_shim.ledger)
    quiet = any_shim.client.post("/chat", json=HELLO).json()["job_id"]
    called = any_shim.client.post(
        "/chat", json={**HELLO, "callback_url": any_shim.settings.default_callback_url}
    ).json()["job_id"]
    pending = {event.job_id for event in any_shim.ledger.letters("pending")}
    assert called in pending
    assert quiet not in pending


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_the_worker_within_a_second(
    any_shim, chat_worker, serve, stream
) -> None:
    """A GPU that writes for nobody keeps everybody else waiting."""
    worker = chat_worker(any_shim.ledger, endless=True)
    hang_up_after(serve(any_shim), "/chat", {**HELLO, "stream": stream}, worker.speaking)
    assert worker.freed.wait(1.0)
    assert only_record(any_shim).status == "cancelled"


def test_a_client_that_hangs_up_in_the_queue_leaves_no_job(shim, serve) -> None:
    """What never began need not begin."""
    connection = http.client.HTTPConnection(urlsplit(serve(shim)).netloc)
    connection.request("POST", "/chat", json.dumps(HELLO))
    ends = time.monotonic() + 5
    while not shim.ledger.waiting("chat_queue"):
        assert time.monotonic() < ends
        time.sleep(0.005)
    connection.close()
    while only_record(shim).status != "cancelled":
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_the_deadline_brings_the_text_so_far_and_frees_the_worker(open_shim, chat_worker) -> None:
    """Half an answer is worth more than none, and the rest is not written."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.3)
    worker = chat_worker(shim.ledger, "A tide is", endless=True)
    answer = shim.client.post("/chat", json=HELLO)
    assert answer.status_code == 200
    assert (answer.json()["response"], answer.json()["finish_reason"]) == ("A tide is", "timeout")
    assert answer.json()["tokens_generated"] == 3
    assert worker.freed.wait(1.0)


def test_a_deadline_without_a_word_is_an_error(open_shim, chat_worker) -> None:
    """Nobody took it: the service's fault, try again. Somebody did: it takes too long."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.2)
    nobody = shim.client.post("/chat", json=HELLO)
    assert (nobody.status_code, nobody.json()["code"]) == (503, "WORKER_UNAVAILABLE")
    assert int(nobody.headers["retry-after"]) >= 1
    assert only_record(shim).status == "cancelled"
    chat_worker(shim.ledger, "", endless=True)
    slow = shim.client.post("/chat", json=HELLO)
    assert (slow.status_code, slow.json()["code"]) == (504, "TIMEOUT_ERROR")


def test_nobody_at_work_is_noticed_long_before_the_deadline(shim, monkeypatch) -> None:
    """Without a worker, a caller learns it in seconds, not minutes."""
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
    shim.appear(id="chat@host-cpu", family="chat", queue="chat_queue", models=("chat",))
    if stopped == "paused":
        shim.ledger.pause("chat_queue", True)
    else:
        shim.ledger.drain("chat@host-cpu", True)
    answer = shim.client.post("/chat", json=HELLO)
    assert (answer.status_code, answer.json()["code"]) == (503, "WORKER_UNAVAILABLE")
    assert answer.json()["detail"] == reason
    assert only_record(shim).status == "cancelled"
    enhanced = shim.client.post("/enhance", json={"prompt": "a kite"}).json()
    assert (enhanced["enhancement_strategy"], enhanced["enhancement_reason"]) == ("fallback", reason)


def test_a_worker_that_is_at_work_is_waited_for(open_shim, monkeypatch) -> None:
    """It may be busy, or be loading its model."""
    monkeypatch.setattr(synchronous, "IDLE_S", 0.02)
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.3)
    shim.appear(id="chat@host-cpu", family="chat", queue="chat_queue", state="starting", models=())
    began = time.monotonic()
    assert shim.client.post("/chat", json=HELLO).status_code == 503
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(
    ("fault", "status"),
    [(WorkerLost("gone"), 503), (OutOfMemory("no room"), 500), (WorkerUnavailable("away"), 503)],
)
def test_how_a_job_fails_is_the_status_of_its_request(shim, chat_worker, fault, status) -> None:
    """Callers branch on the code; a 503 says when to come back."""
    chat_worker(shim.ledger, "", fault=fault)
    answer = shim.client.post("/chat", json=HELLO)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["success"], found["code"], found["error"]) == (False, fault.code, fault.message)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_a_lost_worker_is_replaced_behind_a_caller_who_has_read_nothing(shim, serve, chat_worker) -> None:
    """The second attempt's text is the whole answer."""
    wait = started(shim, stream=False)
    first = shim.ledger.claim(wait.job_id, 1, worker_id="w", lease_s=30, token="one")
    shim.ledger.step(first, items=[("token", {"text": "Half a "})])
    assert shim.ledger.lose(wait.job_id, fence=first.fence)
    chat_worker(shim.ledger)
    assert wait.result().text == "A tide is moving water."


def test_a_lost_worker_ends_an_answer_that_is_being_read(shim) -> None:
    """What was read cannot be taken back, so nothing else may follow it."""
    wait = started(shim, stream=True)
    first = shim.ledger.claim(wait.job_id, 1, worker_id="w", lease_s=30, token="one")
    shim.ledger.step(first, items=[("token", {"text": "Half a "})])
    outcome = Outcome.failure(WorkerLost("gone"))
    assert shim.ledger.end(wait.job_id, run=1, fence=first.fence, outcome=outcome)
    with pytest.raises(WorkerLost):
        wait.result()


def test_pieces_that_got_lost_are_not_passed_over_in_silence(shim) -> None:
    """The ledger keeps the last items only; a text with a hole in it is no answer."""
    wait = started(shim, stream=True)
    claim = shim.ledger.claim(wait.job_id, 1, worker_id="w", lease_s=30, token="one")
    shim.ledger.step(claim, items=[("token", {"text": "water."})])
    text = Asset(type="text", metadata={"text": "A tide is water."})
    ended = Outcome(status="completed", assets=(text,))
    assert shim.ledger.end(wait.job_id, run=1, fence=claim.fence, outcome=ended)
    with pytest.raises(InternalError):
        wait.result()


def test_many_wait_at_once_and_the_shim_goes_on_answering(real_shim, chat_worker, serve) -> None:
    """Waiting holds no thread: a burst of a hundred clients loses nothing."""
    url = serve(real_shim)
    with ThreadPoolExecutor(100) as clients:
        answers = [clients.submit(requests.post, f"{url}/chat", json=HELLO) for _ in range(100)]
        ends = time.monotonic() + 30
        while real_shim.ledger.depth("chat_queue") < 100:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert requests.get(f"{url}/health/live", timeout=5).status_code == 200
        chat_worker(real_shim.ledger)
        found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * 100
    assert len({answer.json()["job_id"] for answer in found}) == 100


class started:
    """A wait that has begun, without a request around it."""

    def __init__(self, shim, *, stream: bool) -> None:
        payload = {**HELLO, "id": "job-9", "type": "chat", "stream": stream}
        self.job_id = "job-9"
        self._shim = shim
        self._job = parse(payload, Defaults())
        self._loop = asyncio.new_event_loop()
        self._wait = self._loop.create_task(self._all())
        while shim.ledger.get(self.job_id) is None and not self._wait.done():
            self._loop.run_until_complete(asyncio.sleep(0.001))

    async def _all(self) -> synchronous.TextResult:
        return await synchronous.read_result(synchronous.stream_text(self._job))

    def result(self) -> synchronous.TextResult:
        """What the wait comes to."""
        try:
            return self._loop.run_until_complete(asyncio.wait_for(self._wait, 10))
        finally:
            self._loop.close()
