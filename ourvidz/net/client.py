"""An HTTP client that makes exactly one request a call and is done by its deadline.

A read timeout alone bounds one `recv`, so a peer that drips a byte now and then holds a thread for hours:
here every read of a connection gets only what is left of the time for the whole request.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any, ClassVar, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

CONNECT_S = 5.0
"""How long each address of a host may take to connect."""
KEPT_BYTES = 64 << 10
"""How much of an answer is read before the connection is closed."""

_PORTS = {"http": 80, "https": 443}
_FORBIDDEN = frozenset('\\ "<>^`{|}')


@dataclass(frozen=True, slots=True)
class Answer:
    """The peer answered: any status, redirects included."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """There was none. `reason` is a phrase that names neither addresses nor headers."""

    reason: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom a URL speaks to. `host` is lower case; IPv6 addresses keep their brackets."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """`host:port`, the port always named."""
        return f"{self.host}:{self.port}"


def origin(url: str) -> Origin | None:
    """Whom this client would call for a URL, read with the client's own parser; None when it is not a
    plain http(s) URL. User names, and characters that parsers disagree about, make it not plain."""
    if not url.isprintable() or _FORBIDDEN & set(url):
        return None
    try:
        parts = parse_url(url)
    except HTTPError:
        return None
    if parts.scheme not in _PORTS or not parts.host or parts.auth is not None:
        return None
    return Origin(parts.scheme, parts.host.lower(), parts.port or _PORTS[parts.scheme])


class Client:
    """Posts bytes. Safe to share: every thread gets its own session."""

    def __init__(self, *, timeout_s: float, connect_s: float = CONNECT_S) -> None:
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._local = threading.local()

    def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Answer | NoAnswer:
        """Send one POST and read the status, the headers and the first bytes of the answer.

        Connecting may take `connect_s` an address; from the start of connecting on, the whole exchange takes
        at most `timeout_s`. A body that does not end in time does not unmake the status.
        """
        try:
            with self._session().post(url, data=body, headers=dict(headers), stream=True) as response:
                return Answer(response.status_code, response.headers, read_start(response, KEPT_BYTES))
        except (OSError, HTTPError, HTTPException, UnicodeError) as failed:
            return NoAnswer(_phrase(failed))

    def _session(self) -> requests.Session:
        found = getattr(self._local, "session", None)
        if found is None:
            found = self._local.session = session(timeout_s=self._timeout_s, connect_s=self._connect_s)
        return cast(requests.Session, found)


def session(*, timeout_s: float, connect_s: float = CONNECT_S) -> requests.Session:
    """A session that follows no redirect, repeats nothing, keeps no connection and no cookie, and takes
    neither proxies nor passwords (.netrc) from the environment. One thread at a time."""
    made = _PlainSession()
    made.trust_env = False
    made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    made.headers.clear()
    made.headers.update(
        {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "ourvidz"}
    )
    adapter = _DeadlineAdapter(timeout_s, connect_s)
    made.mount("http://", adapter)
    made.mount("https://", adapter)
    return made


def read_start(response: requests.Response, limit: int) -> bytes:
    """At most `limit` bytes of a streamed answer, undecoded; what there is when it stops early."""
    kept = bytearray()
    try:
        while len(kept) < limit:
            chunk = response.raw.read1(limit - len(kept), decode_content=False)
            if not chunk:
                break
            kept += chunk
    except (OSError, HTTPError, HTTPException):
        return bytes(kept)
    return bytes(kept)


_PHRASES: tuple[tuple[type[BaseException], str], ...] = (
    (requests.exceptions.ConnectTimeout, "connecting took too long"),
    (requests.exceptions.Timeout, "no answer in time"),
    (requests.exceptions.SSLError, "the TLS handshake failed"),
    (requests.exceptions.InvalidHeader, "a header value cannot be sent"),
    (requests.exceptions.InvalidURL, "the URL cannot be called"),
    (requests.exceptions.ConnectionError, "the connection failed"),
    (TimeoutError, "no answer in time"),
    (UnicodeError, "a header value cannot be sent"),
)


def _phrase(failed: BaseException) -> str:
    # The libraries' own messages quote header values, and one of those is a secret.
    return next((text for kind, text in _PHRASES if isinstance(failed, kind)), type(failed).__name__)


class _PlainSession(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        return None


class _DeadlineAdapter(HTTPAdapter):
    def __init__(self, timeout_s: float, connect_s: float) -> None:
        self._timeout = (min(connect_s, timeout_s), timeout_s)
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._timeout[1])

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = self._timeout
        return super().send(request, *args, **kwargs)


class _OneUse(HTTPConnection):
    """A connection for one request: connecting starts its clock, the answer's head closes it.

    Asking the peer to close is not enough: until it has, the pool would hand out a connection that is about
    to break, and with a clock that has run.
    """

    total_s: ClassVar[float]

    def connect(self) -> None:
        until = time.monotonic() + self.total_s
        super().connect()
        self.sock = cast(socket.socket, _DeadlineSocket(self.sock, until))

    def getresponse(self) -> BaseHTTPResponse:  # type: ignore[override]
        response = super().getresponse()
        # Not self.close(), which closes the response as well; that reads on from its own file on the socket.
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        return response


def _pools(timeout_s: float) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(_OneUse):
        total_s = timeout_s

    class Secure(_OneUse, HTTPSConnection):
        total_s = timeout_s

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class _DeadlineSocket:
    """A connected socket whose operations share one deadline (monotonic seconds)."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        self.shorten()
        self._sock.sendall(data)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock.makefile("rb", buffering=0), self))

    def shorten(self) -> None:
        """Let the next operation take what is left of the time. Raises `TimeoutError` when nothing is."""
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        self._sock.settimeout(left_s)


class _DeadlineReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: _DeadlineSocket) -> None:
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.shorten()
        return cast("int | None", self._raw.readinto(buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()
