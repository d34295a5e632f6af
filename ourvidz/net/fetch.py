"""Downloads from untrusted URLs: a bounded number of bytes, in a bounded time, from hosts that may be called.

The supplier of a URL controls the server, its name server, its headers, its redirects and its pace. Each of
them is checked or bounded here. The caller's user never sees which check failed: the reason is for our log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from ourvidz import log
from ourvidz.net.client import HttpResponse, RequestFailure
from ourvidz.net.connector import CONNECT_TIMEOUT_S, Deadline
from ourvidz.net.egress_policy import INVALID_URL, EgressPolicy
from ourvidz.net.transport import RequestError, StreamedResponse, open_response
from ourvidz.net.urls import parse_http_url

MAX_REDIRECTS = 3
SNIFFED_BYTES = 32
"""How many bytes of a body decide whether it is read to its end."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_log = log.get(__name__)

BodyCheck = Callable[[bytes], bool]
"""Whether a body that begins with these bytes (32, or all of a shorter body) is worth reading."""


@dataclass(frozen=True, slots=True)
class _Redirect:
    url: str


class Fetcher:
    """Downloads whole bodies. Safe to share between threads.

    One `get` takes at most `timeout_s`, name look-ups and redirects included, and reads at most `max_bytes`
    of body. Every redirect is checked like the first URL. Uncompressed bodies are requested and compressed
    ones rejected: their real size shows only after decompression.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        timeout_s: float,
        max_bytes: int,
        max_redirects: int = MAX_REDIRECTS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._connect_timeout_s = connect_timeout_s

    def get(self, url: str, accepts: BodyCheck) -> HttpResponse | RequestFailure:
        """GET `url` and return the 200 response with its complete body.

        Anything else is a `RequestFailure`, whose reason is for our log alone: it distinguishes a closed port
        from a missing page, which would let the caller scan ports.
        """
        result = self._follow(url, accepts, Deadline.after(self._timeout_s))
        if isinstance(result, RequestFailure):
            _log.warning("not_fetched", url=_without_secrets(url), reason=result.reason)
        return result

    def _follow(self, url: str, accepts: BodyCheck, deadline: Deadline) -> HttpResponse | RequestFailure:
        """GET the URL and follow redirects, each of which is checked against the policy."""
        for _ in range(self._max_redirects + 1):
            if refused := self._policy.refusal(url):
                return RequestFailure(refused)
            result = self._request(url, accepts, deadline)
            if not isinstance(result, _Redirect):
                return result
            url = result.url
        return RequestFailure("too many redirects")

    def _request(
        self, url: str, accepts: BodyCheck, deadline: Deadline
    ) -> HttpResponse | RequestFailure | _Redirect:
        """Send one GET request; the result may be a redirect."""
        parsed = parse_http_url(url)
        if parsed is None:
            return RequestFailure(INVALID_URL)
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
            return RequestFailure(error.reason)
        except ValueError:
            # `accepts` runs on untrusted bytes; what it cannot read must not become our error.
            return RequestFailure("the answer cannot be read")

    def _evaluate(
        self, url: str, response: StreamedResponse, accepts: BodyCheck
    ) -> HttpResponse | RequestFailure | _Redirect:
        """Decide by status and headers: a redirect, a failure, or reading the body."""
        location = response.headers.get("location")
        if response.status in _REDIRECTS and location:
            return _redirect(url, location)
        if response.status != 200:
            return RequestFailure(f"HTTP {response.status}")
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            return RequestFailure("the body is compressed")
        return self._read(response, accepts)

    def _read(self, response: StreamedResponse, accepts: BodyCheck) -> HttpResponse | RequestFailure:
        """Read the body up to the size limit, as long as `accepts` accepts its first bytes."""
        if int(response.headers.get("content-length", "0")) > self._max_bytes:
            return RequestFailure("the body is too large")
        body = bytearray()
        accepted = False
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._max_bytes:
                return RequestFailure("the body is too large")
            if not accepted and len(body) >= SNIFFED_BYTES:
                accepted = accepts(bytes(body[:SNIFFED_BYTES]))
                if not accepted:
                    break
        if not accepted and not accepts(bytes(body[:SNIFFED_BYTES])):
            return RequestFailure("the body is of another kind")
        return HttpResponse(response.status, response.headers, bytes(body))


def _redirect(url: str, location: str) -> _Redirect | RequestFailure:
    """The redirect to a Location header, resolved against `url`."""
    try:
        # Headers arrive as Latin-1, URLs in them are written in UTF-8.
        return _Redirect(urljoin(url, location.encode("latin-1").decode("utf-8")))
    except ValueError:
        return RequestFailure("the redirect leads nowhere")


def _without_secrets(url: str) -> str:
    """A URL as the log may show it: without its query, which may be a signature, and without a user name."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "unreadable"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
