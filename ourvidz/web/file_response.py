"""A response with an open file, in full or as the requested range (RFC 9110, section 14)."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping
from email.utils import formatdate
from typing import BinaryIO

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 64 << 10
_RANGE = re.compile(r"\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*")


class UnsatisfiableRange(ValueError):
    """No byte of a file is in the requested range. `size`: of the file, in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"no byte of {size} is in the range")
        self.size = size


def read_range(value: str, size: int) -> tuple[int, int] | None:
    """The first byte of the range in a `Range` header, and the one behind its last; None where the whole file
    is the answer: for a unit that is not bytes, and for several ranges. Raises `UnsatisfiableRange`."""
    unit, _, ranges = value.partition("=")
    if unit.strip().lower() != "bytes" or "," in ranges:
        return None
    match = _RANGE.fullmatch(ranges)
    if match is None or match[0].strip() == "-":
        raise UnsatisfiableRange(size)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise UnsatisfiableRange(size)
    return start, end


class OpenFileResponse(StreamingResponse):
    """Sends an open file, and closes it. A deletion of the file meanwhile changes nothing.

    Answers 304 to the request `scope` if it names this version of the file. Only the caller of the request
    may keep a copy, and asks each time whether it is still the file. `limiter` bounds the threads that read.

    Raises `UnsatisfiableRange` for a range of the request `scope` that the file does not have; then the
    caller closes the file. `OSError` if its size cannot be read.
    """

    def __init__(
        self,
        file: BinaryIO,
        scope: Scope,
        *,
        media_type: str,
        headers: Mapping[str, str],
        limiter: CapacityLimiter,
    ) -> None:
        status = os.fstat(file.fileno())
        self._file = file
        self._limiter = limiter
        own_headers = {
            **headers,
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
            "ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"',
        }
        sent = Headers(scope=scope)
        start, end, code = 0, status.st_size, 200
        # A range is asked for of the file that was read before, if the request names that one.
        unchanged = sent.get("if-range") in (None, own_headers["ETag"], own_headers["Last-Modified"])
        if _names(sent.get("if-none-match", ""), own_headers["ETag"]):
            end, code = 0, 304
        elif scope["method"] == "GET" and "range" in sent and unchanged:
            part = read_range(sent["range"], status.st_size)
            if part is not None:
                start, end, code = *part, 206
                own_headers["Content-Range"] = f"bytes {start}-{end - 1}/{status.st_size}"
        if code != 304:
            own_headers["Content-Length"] = str(end - start)
        body = self._chunks(start, 0 if scope["method"] == "HEAD" else end - start)
        super().__init__(body, code, own_headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)

    async def _chunks(self, start: int, count: int) -> AsyncIterator[bytes]:
        """`count` bytes from `start` on. Raises `EOFError` if the file has become shorter."""
        self._file.seek(start)
        while count:
            size = min(CHUNK_BYTES, count)
            chunk = await to_thread.run_sync(self._file.read, size, limiter=self._limiter)
            if not chunk:
                raise EOFError("the file has become shorter")
            count -= len(chunk)
            yield chunk


def _names(condition: str, etag: str) -> bool:
    """Whether an `If-None-Match` header names this version, or any."""
    tags = {tag.strip().removeprefix("W/") for tag in condition.split(",")}
    return etag in tags or "*" in tags
