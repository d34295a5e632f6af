"""A callback receiver in a process of its own, so that its time is not counted as that of OurVidz.

    python -m benchmarks.receiver

Prints its URL. `POST` to any path stores a callback; `GET /wait/N` answers once the terminal callbacks of N
jobs have arrived; `GET /received/JOB` returns when the callbacks of a job arrived: `{status: Unix seconds}`.
"""

from __future__ import annotations

import asyncio
import json
import time

TERMINAL = frozenset({"completed", "failed", "cancelled"})


class Received:
    """The callbacks that have arrived: for each job, the first arrival of each status."""

    def __init__(self) -> None:
        self.arrivals: dict[str, dict[str, float]] = {}
        self.ended = 0
        self.changed = asyncio.Condition()

    async def add(self, callback: dict[str, str]) -> None:
        """Store one callback; a repetition changes nothing."""
        statuses = self.arrivals.setdefault(callback["job_id"], {})
        status = callback["status"]
        if status in statuses:
            return
        statuses[status] = time.time()
        if status in TERMINAL:
            self.ended += 1
            async with self.changed:
                self.changed.notify_all()

    async def wait(self, jobs: int) -> None:
        """Wait until the terminal callbacks of so many jobs have arrived."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.ended >= jobs)


async def serve(received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, until it is closed."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = lines[0].split(" ", 2)
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            answer = await respond(received, method, path, body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass  # The caller closed the connection, or the receiver is closed.
    finally:
        writer.close()


async def respond(received: Received, method: str, path: str, body: bytes) -> bytes:
    """The body of the answer to one request."""
    if method == "POST":
        await received.add(json.loads(body))
        return b"{}"
    if path.startswith("/received/"):
        return json.dumps(received.arrivals.get(path.removeprefix("/received/"), {})).encode()
    await received.wait(int(path.removeprefix("/wait/")))
    return b"{}"


async def main() -> None:
    """Listen on a free loopback port until the process is killed."""
    received = Received()
    server = await asyncio.start_server(lambda r, w: serve(received, r, w), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
