"""A shim process with many open requests: all are served, and none is forgotten when it stops."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from tests.factories import image_job
from tests.web.conftest import StartChatWorker, free_port, get

pytestmark = pytest.mark.system

CALLERS = 150
"""Of each kind; together more than a connection pool of redis-py holds."""
HELLO = {"messages": [{"role": "user", "content": "What is a tide?"}]}

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    ledger = Ledger(redis_url)
    yield ledger
    ledger.close()


def until(read: Callable[[], Any], within_s: float = 30) -> None:
    """Wait until `read` returns a true value."""
    deadline = time.monotonic() + within_s
    while not read():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class OpenRequest:
    """One HTTP/1.1 request of an asyncio client, whose response is read as it comes."""

    def __init__(self, port: int, method: str, path: str, document: object = None) -> None:
        self._port = port
        body = b"" if document is None else json.dumps(document).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.response = b""

    async def send(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(self._request)

    async def read_to(self, text: bytes = b"") -> bytes:
        """Read until the response contains `text`, or to its end; return all of it so far."""
        while not text or text not in self.response:
            received = await self._reader.read(65536)
            if not received:
                break
            self.response += received
        if not text:
            self._writer.close()
        return self.response


async def serve_many(ledger: Ledger, port: int, count: int, answer: Callable[[], object]) -> list[bytes]:
    """Let `count` callers wait for a text and `count` follow a job of their own; call `answer` once all are
    open; return the responses of both."""
    waiting = [OpenRequest(port, "POST", "/chat", HELLO) for _ in range(count)]
    following = [OpenRequest(port, "GET", f"/jobs/j{number}/events") for number in range(count)]
    await asyncio.gather(*(request.send() for request in (*waiting, *following)))
    await asyncio.gather(*(request.read_to(b"event: state") for request in following))
    await asyncio.to_thread(until, lambda: ledger.queue_depth("chat_queue") == count, 120)
    await asyncio.to_thread(answer)
    return list(await asyncio.gather(*(request.read_to() for request in (*waiting, *following))))


def end_jobs(ledger: Ledger, count: int) -> None:
    for number in range(count):
        claim = ledger.claim(f"j{number}", 1, worker_id="w", lease_s=60, token=f"j{number}")
        assert claim is not None
        ledger.end(claim, outcome=Outcome(status="completed"))


def test_hundreds_of_callers_wait_and_follow_at_the_same_time(
    start: Start, ledger: Ledger, chat_worker: StartChatWorker
) -> None:
    """Each had a connection of its own to Redis, of which there were a hundred."""
    port = free_port()
    get(port, "/health/live", start(OURVIDZ_PORTS=str(port)))
    for number in range(CALLERS):
        ledger.register(image_job(f"j{number}"), priority=6)

    def answer() -> None:
        assert requests.get(f"http://127.0.0.1:{port}/health/live", timeout=5).status_code == 200
        chat_worker(ledger)
        end_jobs(ledger, CALLERS)

    responses = asyncio.run(asyncio.wait_for(serve_many(ledger, port, CALLERS, answer), 100))
    texts, streams = responses[:CALLERS], responses[CALLERS:]
    assert [text.split(b" ", 2)[1] for text in texts] == [b"200"] * CALLERS
    assert all(b"A tide is moving water." in text for text in texts)
    assert all(b"event: done" in stream for stream in streams)


@pytest.fixture
def stopping(
    start: Start, ledger: Ledger, chat_worker: StartChatWorker
) -> Iterator[tuple[subprocess.Popen[str], str, Any, Any]]:
    """A shim that has received SIGTERM while a caller waits for an endless text: its process and URL, the
    response to come, and the worker."""
    port = free_port()
    process = start(OURVIDZ_PORTS=str(port), OURVIDZ_SYNC_DEADLINE_S="60")
    get(port, "/health/live", process)
    url = f"http://127.0.0.1:{port}"
    worker = chat_worker(ledger, endless=True)
    with ThreadPoolExecutor(1) as caller:
        response = caller.submit(requests.post, f"{url}/chat", json=HELLO, timeout=60)
        assert worker.text_streamed.wait(30)
        process.send_signal(signal.SIGTERM)
        until(
            lambda: requests.get(f"{url}/health/ready", timeout=5).json()["detail"].startswith("This server")
        )
        yield process, url, response, worker


def test_a_stopping_shim_serves_those_who_wait_and_refuses_others(stopping: Any, ledger: Ledger) -> None:
    """They were cut off after three seconds, and their jobs ran on for nobody."""
    process, url, response, worker = stopping
    for stream in (False, True):
        refused = requests.post(f"{url}/chat", json={**HELLO, "stream": stream}, timeout=5)
        assert (refused.status_code, refused.json()["code"]) == (503, "WORKER_UNAVAILABLE")
        assert int(refused.headers["retry-after"]) >= 1
    job = {"id": "job-1", "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "me"}
    assert requests.post(f"{url}/jobs", json=job, timeout=5).status_code == 202
    assert not response.done()
    worker.finish()
    assert response.result(30).json()["response"] == "A tide is moving water."
    assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    assert ledger.page(type="chat_conversation").records[0].status == "completed"


def test_a_second_signal_cancels_what_callers_wait_for(stopping: Any, ledger: Ledger) -> None:
    """Nobody would read the answers; the callers are told to ask again."""
    process, _, response, worker = stopping
    process.send_signal(signal.SIGTERM)
    answer = response.result(30)
    assert (answer.status_code, answer.json()["code"]) == (503, "WORKER_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    assert worker.cancelled.wait(10)
    assert ledger.page(type="chat_conversation").records[0].status == "cancelled"


def test_the_deadline_of_synchronous_requests_ends_the_drain(
    start: Start, ledger: Ledger, chat_worker: StartChatWorker
) -> None:
    """A stream that was begun ends with the text so far; the process does not outlive it."""
    port = free_port()
    process = start(OURVIDZ_PORTS=str(port), OURVIDZ_SYNC_DEADLINE_S="1")
    get(port, "/health/live", process)
    worker = chat_worker(ledger, endless=True)
    with ThreadPoolExecutor(1) as caller:
        body = {**HELLO, "stream": True}
        response = caller.submit(requests.post, f"http://127.0.0.1:{port}/chat", json=body, timeout=60)
        assert worker.text_streamed.wait(30)
        process.send_signal(signal.SIGTERM)
        text = response.result(30).text
    assert "A tide is moving water." in text.replace('"}\n\nevent: token\ndata: {"text":"', "")
    assert text.rstrip().endswith("}")
    assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    assert worker.cancelled.wait(10)
