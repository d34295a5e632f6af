"""Reading a stranger's URL: a bounded number of bytes, in a bounded time, from hosts that may be called.

Whoever names a URL chooses the server, its name server, its headers, its redirects and its pace. Each of
them is checked or bounded here, and nobody who asked learns which it was: the reason is for our log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import requests

from ourvidz import log
from ourvidz.net.client import CONNECT_S, FAILURES, Answer, NoAnswer, phrase, session
from ourvidz.net.egress_policy import Reach

MAX_REDIRECTS = 3
HEAD_BYTES = 32
"""How much of a body tells what it is."""

_CHUNK_BYTES = 64 << 10
_MOVED = frozenset({301, 302, 303, 307, 308})
_LATE = NoAnswer("no answer in time")
_log = log.get(__name__)

Begins = Callable[[bytes], bool]
"""Whether a body that begins with these bytes (32, or all of a shorter one) is worth reading."""


@dataclass(frozen=True, slots=True)
class _Moved:
    to: str


class Fetcher:
    """Reads whole answers. Safe to share.

    One `get` takes at most `timeout_s`, look-ups and redirects included, and keeps at most `max_bytes` of
    body. Every redirect is checked like the first URL. Bodies are asked for as they are, and compressed ones
    refused: how large they really are shows only when it is too late.
    """

    def __init__(
        self,
        reach: Reach,
        *,
        timeout_s: float,
        max_bytes: int,
        max_redirects: int = MAX_REDIRECTS,
        connect_s: float = CONNECT_S,
    ) -> None:
        self._reach = reach
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._connect_s = connect_s

    def get(self, url: str, begins: Begins) -> Answer | NoAnswer:
        """The answer to a GET, its body complete. The reason of a `NoAnswer` is for our log alone: it tells
        a closed port from a missing page."""
        found = self._follow(url, begins, time.monotonic() + self._timeout_s)
        if isinstance(found, NoAnswer):
            _log.warning("not_fetched", url=_without_query(url), reason=found.reason)
        return found

    def _follow(self, url: str, begins: Begins, until: float) -> Answer | NoAnswer:
        for _ in range(self._max_redirects + 1):
            if refused := self._reach.refusal(url):
                return NoAnswer(refused)
            found = self._ask(url, begins, until)
            if not isinstance(found, _Moved):
                return found
            url = found.to
        return NoAnswer("too many redirects")

    def _ask(self, url: str, begins: Begins, until: float) -> Answer | NoAnswer | _Moved:
        left_s = until - time.monotonic()
        if left_s <= 0:
            return _LATE
        asking = session(timeout_s=left_s, connect_s=self._connect_s, opener=self._reach)
        try:
            with asking, asking.get(url, stream=True) as response:
                return self._judge(url, response, begins)
        except FAILURES as failed:
            return NoAnswer(phrase(failed))
        except ValueError:
            # Numbers in a stranger's headers are read by three libraries, and Python refuses very long ones.
            return NoAnswer("the answer cannot be read")

    def _judge(self, url: str, response: requests.Response, begins: Begins) -> Answer | NoAnswer | _Moved:
        location = response.headers.get("Location")
        if response.status_code in _MOVED and location:
            return _moved(url, location)
        if response.status_code != requests.codes.ok:
            return NoAnswer(f"HTTP {response.status_code}")
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            return NoAnswer("the body is compressed")
        return self._read(response, begins)

    def _read(self, response: requests.Response, begins: Begins) -> Answer | NoAnswer:
        if _exceeds(response.headers.get("Content-Length", ""), self._max_bytes):
            return NoAnswer("the body is too large")
        kept = bytearray()
        known = False
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
            kept += chunk
            if len(kept) > self._max_bytes:
                return NoAnswer("the body is too large")
            if not known and len(kept) >= HEAD_BYTES:
                known = begins(bytes(kept[:HEAD_BYTES]))
                if not known:
                    break
        if not known and not begins(bytes(kept[:HEAD_BYTES])):
            return NoAnswer("the body is of another kind")
        return Answer(response.status_code, response.headers, bytes(kept))


def _exceeds(declared: str, most: int) -> bool:
    """Whether a `Content-Length` is a number greater than `most`. One that is no number says nothing."""
    digits = declared.lstrip("0")
    # By its digits first: Python reads no integer of more than 4300.
    return declared.isdecimal() and (len(digits) > len(str(most)) or int(digits or "0") > most)


def _moved(url: str, location: str) -> _Moved | NoAnswer:
    try:
        # Headers arrive as Latin-1, URLs in them are written in UTF-8.
        return _Moved(urljoin(url, location.encode("latin-1").decode("utf-8")))
    except ValueError:
        return NoAnswer("the redirect leads nowhere")


def _without_query(url: str) -> str:
    """What the log shows of a URL: neither its query, which may be a signature, nor a user name."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "unreadable"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
