"""An HTTP client that makes exactly one request a call and is done by its deadline.

A read timeout alone bounds one `recv`, so a peer that drips a byte now and then holds a thread for hours:
here every read of a connection gets only what is left of the time for the whole request.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any, ClassVar, Protocol, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProtocolError
from urllib3.exceptions import TimeoutError as LateError
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

    def is_among(self, hosts: Collection[str]) -> bool:
        """Whether an operator's list names this host (`host`, any port) or this `host:port`."""
        return any(entry.lower() in (self.host, self.netloc) for entry in hosts)


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


class Unreachable(Exception):
    """An opener may not call this host; the message is for our log, it names addresses."""


class Opener(Protocol):
    """Who connects, where not every host may be called."""

    def open(self, host: str, port: int, *, connect_s: float, until: float) -> socket.socket:
        """A connection to `host` (no brackets), made in `connect_s` an address and by `until` (monotonic
        seconds). Raises `Unreachable`, or `OSError` when nobody is there."""


class Client:
    """Sends one request a call. Safe to share: every thread gets its own session."""

    def __init__(
        self, *, timeout_s: float, connect_s: float = CONNECT_S, opener: Opener | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._opener = opener
        self._local = threading.local()

    def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Answer | NoAnswer:
        """Send one POST and read the status, the headers and the first bytes of the answer.

        Connecting may take `connect_s` an address; from the start of connecting on, the whole exchange takes
        at most `timeout_s`. A body that does not end in time does not unmake the status.
        """
        return self._send("POST", url, body, headers)

    def get(self, url: str, *, headers: Mapping[str, str]) -> Answer | NoAnswer:
        """Send one GET, likewise."""
        return self._send("GET", url, None, headers)

    def _send(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer | NoAnswer:
        try:
            asked = self._session().request(method, url, data=body, headers=dict(headers), stream=True)
            with asked as response:
                return Answer(response.status_code, response.headers, read_start(response, KEPT_BYTES))
        except FAILURES as failed:
            return NoAnswer(phrase(failed))

    def _session(self) -> requests.Session:
        found = getattr(self._local, "session", None)
        if found is None:
            found = self._local.session = session(
                timeout_s=self._timeout_s, connect_s=self._connect_s, opener=self._opener
            )
        return cast(requests.Session, found)


def session(
    *, timeout_s: float, connect_s: float = CONNECT_S, opener: Opener | None = None
) -> requests.Session:
    """A session that follows no redirect, repeats nothing, keeps no connection and no cookie, and takes
    neither proxies nor passwords (.netrc) from the environment. One thread at a time. `opener` connects,
    if there is one: whom the session calls is then its decision."""
    made = _PlainSession()
    made.trust_env = False
    made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    made.headers.clear()
    made.headers.update(
        {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "ourvidz"}
    )
    adapter = _DeadlineAdapter(timeout_s, connect_s, opener)
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


FAILURES = (OSError, HTTPError, HTTPException, UnicodeError, Unreachable)
"""What a request may raise."""

_PHRASES: tuple[tuple[type[BaseException], str], ...] = (
    (requests.exceptions.ConnectTimeout, "connecting took too long"),
    (requests.exceptions.Timeout, "no answer in time"),
    (requests.exceptions.SSLError, "the TLS handshake failed"),
    (requests.exceptions.InvalidHeader, "a header value cannot be sent"),
    (requests.exceptions.InvalidURL, "the URL cannot be called"),
    (requests.exceptions.ConnectionError, "the connection failed"),
    (TimeoutError, "no answer in time"),
    (LateError, "no answer in time"),
    (ProtocolError, "the answer broke off"),
    (UnicodeError, "a header value cannot be sent"),
    (Unreachable, "the host may not be called"),
)


def phrase(failed: BaseException) -> str:
    """A failure in words that may be shown and kept."""
    # The libraries' own messages quote header values, and one of those is a secret.
    return next((text for kind, text in _PHRASES if isinstance(failed, kind)), type(failed).__name__)


class _PlainSession(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        return None


class _DeadlineAdapter(HTTPAdapter):
    def __init__(self, timeout_s: float, connect_s: float, opener: Opener | None) -> None:
        self._timeout = (min(connect_s, timeout_s), timeout_s)
        self._opener = opener
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(*self._timeout, self._opener)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = self._timeout
        return super().send(request, *args, **kwargs)


class _OneUse(HTTPConnection):
    """A connection for one request: connecting starts its clock, the answer's head closes it.

    Asking the peer to close is not enough: until it has, the pool would hand out a connection that is about
    to break, and with a clock that has run.
    """

    connect_s: ClassVar[float]
    total_s: ClassVar[float]
    opener: ClassVar[Opener | None]
    _until = 0.0

    def connect(self) -> None:
        self._until = time.monotonic() + self.total_s
        super().connect()
        self.sock = cast(socket.socket, _DeadlineSocket(self.sock, self._until))

    def _new_conn(self) -> socket.socket:
        if self.opener is None:
            return super()._new_conn()
        try:
            return self.opener.open(self._dns_host, self.port, connect_s=self.connect_s, until=self._until)
        except TimeoutError as late:
            raise ConnectTimeoutError(self, "connecting took too long") from late
        except OSError as failed:
            raise NewConnectionError(self, str(failed)) from failed

    def getresponse(self) -> BaseHTTPResponse:  # type: ignore[override]
        response = super().getresponse()
        # Not self.close(), which closes the response as well; that reads on from its own file on the socket.
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        return response


def _pools(connecting_s: float, timeout_s: float, by: Opener | None) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(_OneUse):
        connect_s, total_s, opener = connecting_s, timeout_s, by

    class Secure(_OneUse, HTTPSConnection):
        connect_s, total_s, opener = connecting_s, timeout_s, by

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
