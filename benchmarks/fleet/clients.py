"""Callers of a shim in one event loop: each submits a job, waits for its callback, and submits the next."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from benchmarks.filling import payload
from benchmarks.receiver import TERMINAL, Received, serve

TIMEOUT_S = 60.0


class Callbacks(Received):
    """Wakes the caller of a job when its terminal callback arrives."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def add(self, callback: dict[str, str]) -> None:
        """Note one callback."""
        if callback["status"] in TERMINAL and (waiter := self._waiting.pop(callback["job_id"], None)):
            waiter.set_result(None)

    def expect(self, job_id: str) -> asyncio.Future[None]:
        """A future that is done when the job has ended. Call before the job is submitted."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[job_id] = waiter
        return waiter


class Fleet:
    """Callers, one for each GPU, so that a worker is free for each job that is submitted.

    `submitted` holds the time at which each job was sent, `ended` the time of its terminal callback.
    """

    def __init__(self, prefix: str) -> None:
        self.submitted: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self._prefix = prefix
        self._callbacks = Callbacks()

    @asynccontextmanager
    async def receiving(self, port: int) -> AsyncIterator[None]:
        """Receive the callbacks on a loopback port."""
        server = await asyncio.start_server(
            lambda reader, writer: serve(self._callbacks, reader, writer), "127.0.0.1", port
        )
        async with server:
            yield

    async def run(self, shims: Sequence[str], gpus: int, seconds: float) -> None:
        """Let all callers work for a while, and wait for their last jobs."""
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(
                self._caller(shims[number % len(shims)], number, number / gpus, until)
                for number in range(gpus)
            )
        )

    async def _caller(self, shim: str, number: int, delay_s: float, until: float) -> None:
        """Submit one job after the other until a time, from a delay on: a fleet is not in step."""
        await asyncio.sleep(delay_s)
        connection = Connection(shim)
        count = 0
        while time.monotonic() < until:
            job_id = f"{self._prefix}-{number}-{count}"
            ended = self._callbacks.expect(job_id)
            self.submitted[job_id] = time.time()
            await connection.post(payload(job_id, f"user{number}"))
            await asyncio.wait_for(ended, TIMEOUT_S)
            self.ended[job_id] = time.time()
            count += 1
        connection.close()


class Connection:
    """A connection to a shim that stays open, and is opened again once the shim has closed it as idle."""

    def __init__(self, shim: str) -> None:
        self._address = urlsplit(shim)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, job: dict[str, Any]) -> None:
        """Submit a job. Fails unless it is accepted (202)."""
        answer = None
        while answer is None:
            reader, writer = await self._open()
            writer.write(_request(self._address.netloc, job))
            answer = await _read_answer(reader)
            if answer is None:
                self.close()
        status, body = answer
        assert b" 202 " in status, (status, body)

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port)
        return self._streams


def _request(host: str, job: dict[str, Any]) -> bytes:
    body = json.dumps(job).encode()
    head = ("POST /jobs HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
    return "\r\n".join((*head, f"Content-Length: {len(body)}", "", "")).encode() + body


async def _read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """Status line and body of an answer; None when the connection was closed instead."""
    try:
        if not (status := await reader.readline()):
            return None
        length = 0
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, await reader.readexactly(length)
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
