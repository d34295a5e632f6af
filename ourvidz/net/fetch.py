"""Downloads from untrusted URLs: a bounded number of bytes, in a bounded time, from hosts that may be called.

The supplier of a URL controls the server, its name server, its headers, its redirects and its pace. Each of
them is checked or bounded here. The caller's user never sees which check failed: the reason is for our log.
What fails for a moment (the network, a status of 429 or from 500 on) is requested again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urljoin, urlsplit

from ourvidz import log
from ourvidz.net.client import RequestFailure
from ourvidz.net.connector import CONNECT_TIMEOUT_S, Deadline
from ourvidz.net.egress_policy import INVALID_URL, EgressPolicy
from ourvidz.net.retry_after import parse_retry_after
from ourvidz.net.transport import RequestError, StreamedResponse, open_response
from ourvidz.net.urls import parse_http_url

MAX_REDIRECTS = 3
MAX_TRIES = 3
BACKOFF_S = 0.5
"""The longest pause after the first try; it doubles with each further one. The shortest is half of that."""
SNIFFED_BYTES = 32
"""How many bytes of a body decide whether it is read to its end."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_log = log.get(__name__)

BodyCheck = Callable[[bytes], bool]
"""Whether a body that begins with these bytes (32, or all of a shorter body) is worth reading."""


@dataclass(frozen=True, slots=True)
class Download:
    """A complete body, and how many tries it took."""

    body: bytes
    tries: int = 1


@dataclass(frozen=True, slots=True)
class _Redirect:
    url: str


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why one try failed. `transient`: another may succeed, `retry_after_s` seconds from now at the
    earliest."""

    reason: str
    transient: bool = False
    retry_after_s: float = 0.0


class Fetcher:
    """Downloads whole bodies. Safe to share between threads.

    One `get` takes at most `timeout_s`, with name look-ups, redirects, all tries and the pauses between them,
    and reads at most `max_bytes` of body in each try. Every try resolves the name again, and it and every
    redirect are checked like the first URL. Uncompressed bodies are requested and compressed ones rejected:
    their real size shows only after decompression.

    `max_tries`: how often a URL is requested that fails for a moment. `backoff_s`: the longest pause after
    the first try; a `Retry-After` of the server makes it longer.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        timeout_s: float,
        max_bytes: int,
        max_redirects: int = MAX_REDIRECTS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        max_tries: int = MAX_TRIES,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._connect_timeout_s = connect_timeout_s
        self._max_tries = max_tries
        self._backoff_s = backoff_s

    def get(self, url: str, accepts: BodyCheck) -> Download | RequestFailure:
        """GET `url` and return the complete body of its 200 response.

        Anything else is a `RequestFailure`, whose reason is for our log alone: it distinguishes a closed port
        from a missing page, which would let the caller scan ports.
        """
        deadline = Deadline.after(self._timeout_s)
        tries = 1
        while isinstance(result := self._follow(url, accepts, deadline), _Failure):
            pause_s = self._pause_s(result, tries, deadline)
            about = {"url": _without_secrets(url), "reason": result.reason, "tries": tries}
            if pause_s is None:
                _log.warning("not_fetched", **about)
                return RequestFailure(result.reason)
            _log.info("fetch_retried", **about, pause_s=round(pause_s, 2))
            time.sleep(pause_s)
            tries += 1
        return Download(result, tries)

    def _pause_s(self, failure: _Failure, tries: int, deadline: Deadline) -> float | None:
        """How long to wait before the next try; None if there is none, or it would come too late."""
        if not failure.transient or tries >= self._max_tries:
            return None
        backoff_s = self._backoff_s * 2.0 ** (tries - 1) * random.uniform(0.5, 1.0)
        pause_s = max(failure.retry_after_s, backoff_s)
        return pause_s if time.monotonic() + pause_s < deadline.at else None

    def _follow(self, url: str, accepts: BodyCheck, deadline: Deadline) -> bytes | _Failure:
        """GET the URL and follow redirects, each of which is checked against the policy."""
        for _ in range(self._max_redirects + 1):
            if refused := self._policy.refusal(url):
                return _Failure(refused)
            result = self._request(url, accepts, deadline)
            if not isinstance(result, _Redirect):
                return result
            url = result.url
        return _Failure("too many redirects")

    def _request(self, url: str, accepts: BodyCheck, deadline: Deadline) -> bytes | _Failure | _Redirect:
        """Send one GET request; the result may be a redirect."""
        parsed = parse_http_url(url)
        if parsed is None:
            return _Failure(INVALID_URL)
        try:
            with open_response(
                "GET",
                parsed,
                headers={},
                deadline=deadline,
                connect_timeout_s=self._connect_timeout_s,
                connector=self._policy,
            ) as response:
                return self._evaluate(url, response, accepts)
        except RequestError as error:
            return _Failure(error.reason, transient=error.transient)
        except ValueError:
            # `accepts` runs on untrusted bytes; what it cannot read must not become our error.
            return _Failure("the answer cannot be read")

    def _evaluate(
        self, url: str, response: StreamedResponse, accepts: BodyCheck
    ) -> bytes | _Failure | _Redirect:
        """Decide by status and headers: a redirect, a failure, or reading the body."""
        location = response.headers.get("location")
        if response.status in _REDIRECTS and location:
            return _redirect(url, location)
        if response.status != 200:
            return _failed_status(response)
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            return _Failure("the body is compressed")
        return self._read(response, accepts)

    def _read(self, response: StreamedResponse, accepts: BodyCheck) -> bytes | _Failure:
        """Read the body up to the size limit, as long as `accepts` accepts its first bytes."""
        if int(response.headers.get("content-length", "0")) > self._max_bytes:
            return _Failure("the body is too large")
        body = bytearray()
        accepted = False
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._max_bytes:
                return _Failure("the body is too large")
            if not accepted and len(body) >= SNIFFED_BYTES:
                accepted = accepts(bytes(body[:SNIFFED_BYTES]))
                if not accepted:
                    break
        if not accepted and not accepts(bytes(body[:SNIFFED_BYTES])):
            return _Failure("the body is of another kind")
        return bytes(body)


def _failed_status(response: StreamedResponse) -> _Failure:
    """The failure that a status stands for: 429 and all from 500 on may be gone in a moment."""
    transient = response.status == 429 or response.status >= 500
    retry_after_s = parse_retry_after(response.headers.get("retry-after"), now=datetime.now(UTC))
    return _Failure(f"HTTP {response.status}", transient, retry_after_s or 0.0)


def _redirect(url: str, location: str) -> _Redirect | _Failure:
    """The redirect to a Location header, resolved against `url`."""
    try:
        # Headers arrive as Latin-1, URLs in them are written in UTF-8.
        return _Redirect(urljoin(url, location.encode("latin-1").decode("utf-8")))
    except ValueError:
        return _Failure("the redirect leads nowhere")


def _without_secrets(url: str) -> str:
    """A URL as the log may show it: without its query, which may be a signature, and without a user name."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "unreadable"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
