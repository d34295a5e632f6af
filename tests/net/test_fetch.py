"""Fetching an untrusted URL takes bounded time and memory and reaches allowed hosts only."""

from __future__ import annotations

import gzip
import socket
import time
import tracemalloc
from contextlib import closing
from typing import Any

import pytest
from structlog.testing import capture_logs

from ourvidz.net.client import HttpResponse, RequestFailure
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import Fetcher

TIMEOUT_S = 0.4
SLACK_S = 2.0
PATIENCE_S = 30.0
MAX_BYTES = 100_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def is_png(head: bytes) -> bool:
    return head.startswith(PNG[:8])


def fetch(url: str, *sites: Any, timeout_s: float = PATIENCE_S) -> HttpResponse | RequestFailure:
    """GET a URL; only these sites are allowed besides the public Internet."""
    policy = EgressPolicy([site.netloc for site in sites])
    return Fetcher(policy, timeout_s=timeout_s, max_bytes=MAX_BYTES).get(url, is_png)


def answer(body: bytes = PNG, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    named = "".join(f"{header}\r\n" for header in headers)
    counted = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {counted}\r\n{named}\r\n".encode("latin-1") + body


def moved(to: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_picture_comes_whole(site: Any) -> None:
    """A valid image is returned unchanged."""
    found = fetch(site.page("/a.png", answer()), site)
    assert isinstance(found, HttpResponse)
    assert found.body == PNG


def test_the_request_says_little(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of the environment are ignored; the request accepts no compressed body."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    fetch(site.page("/a.png", answer()), site)
    sent = site.requests[0].decode()
    assert "Accept-Encoding: identity\r\n" in sent
    assert f"Host: {site.netloc}\r\n" in sent
    assert "python" not in sent
    assert "Referer" not in sent


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream", "image/svg+xml"])
def test_bytes_count_and_not_what_they_are_called(site: Any, kind: str) -> None:
    """The image type comes from the first bytes; the Content-Type header is ignored."""
    assert isinstance(fetch(site.page("/a", answer(PNG, f"Content-Type: {kind}")), site), HttpResponse)


@pytest.mark.parametrize(
    "body",
    [
        b"<html><body>the panel of a router</body></html>",
        b"<svg/>",
        b"%PDF-1.7",
        b"",
        b"\x89PNG",
        b"{}" * 5000,
    ],
    ids=["html", "svg", "pdf", "nothing", "four bytes", "json"],
)
def test_what_does_not_begin_like_a_picture_is_not_kept(site: Any, body: bytes) -> None:
    """A body without an image signature is rejected, whatever its Content-Type."""
    found = fetch(site.page("/a.png", answer(body, "Content-Type: image/png")), site)
    assert found == RequestFailure("the body is of another kind")


@pytest.mark.parametrize(
    "status", ["204 No", "206 Part", "304 Same", "401 Who", "403 No", "404 No", "500 Oh", "503 Oh"]
)
def test_only_a_full_answer_counts(site: Any, status: str) -> None:
    """Only status 200 is accepted."""
    assert fetch(site.page("/a.png", answer(status=status)), site) == RequestFailure(f"HTTP {status[:3]}")


@pytest.mark.parametrize(
    "page",
    [
        answer(gzip.compress(PNG + bytes(10 << 20)), "Content-Encoding: gzip"),
        answer(PNG, "Content-Encoding: br"),
        answer(PNG, "Content-Encoding: gzip, identity"),
    ],
    ids=["a gzip bomb", "brotli", "two of them"],
)
def test_a_compressed_body_is_refused(site: Any, page: bytes) -> None:
    """The size limit would not hold for the decompressed body."""
    assert fetch(site.page("/a.png", page), site) == RequestFailure("the body is compressed")


def test_bytes_that_cannot_be_read_are_no_answer(site: Any) -> None:
    """An exception while the body is read becomes a `RequestFailure`, so the job can fall back."""
    policy = EgressPolicy([site.netloc])
    fetcher = Fetcher(policy, timeout_s=PATIENCE_S, max_bytes=MAX_BYTES)
    found = fetcher.get(site.page("/a.png", answer(b"x" * 99)), lambda head: int(head) > 0)
    assert found == RequestFailure("the answer cannot be read")


CHUNK = b"8000\r\n" + PNG + bytes(0x8000 - len(PNG)) + b"\r\n"


def test_a_body_that_says_it_is_too_large_is_not_read(site: Any) -> None:
    """A Content-Length over the limit is rejected before the body is read."""
    page = answer(PNG, length=MAX_BYTES + 1)
    assert fetch(site.page("/a.png", page), site) == RequestFailure("the body is too large")


@pytest.mark.parametrize("lengths", [[f" {len(PNG)} "], [str(len(PNG))] * 2, [f"{len(PNG)},{len(PNG)}"]])
def test_a_length_that_is_repeated_is_one_length(site: Any, lengths: list[str]) -> None:
    """Proxies write the header twice; where both agree nothing is in doubt."""
    named = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    page = f"HTTP/1.1 200 OK\r\n{named}\r\n".encode() + PNG
    found = fetch(site.page("/a.png", page), site)
    assert isinstance(found, HttpResponse)
    assert found.body == PNG


@pytest.mark.parametrize("digits", ["9" * 4300, "9" * 5000, "1" + "0" * 60_000, "0" * 5000 + "9"])
def test_a_length_of_thousands_of_digits_is_no_answer(site: Any, digits: str) -> None:
    """Python reads no integer of more than 4300 digits; an untrusted header must not become our error."""
    page = f"HTTP/1.1 200 OK\r\nContent-Length: {digits}\r\n\r\n".encode() + PNG
    assert isinstance(fetch(site.page("/a.png", page), site), RequestFailure)


@pytest.mark.parametrize(
    "length",
    [
        *("x", "-1", "-" + "9" * 5000, "1e9", "0x10", "9.9", "", f"+{len(PNG)}"),
        *("\u0669\u0669", "\u00b2", "\uff19" * 5000),
    ],
    ids=lambda length: ascii(length[:8]),
)  # fmt: skip
def test_a_malformed_length_is_no_answer(site: Any, length: str) -> None:
    """RFC 9112, section 6.3: where the body ends is unknown then, so a client discards the response."""
    page = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + PNG
    assert isinstance(fetch(site.page("/a.png", page), site), RequestFailure)


@pytest.mark.parametrize("lengths", [["5", "9"], ["5", "9" * 5000], ["+5"], [f"{len(PNG)}, {MAX_BYTES + 1}"]])
def test_lengths_that_contradict_make_no_answer(site: Any, lengths: list[str]) -> None:
    """The length of the body is ambiguous."""
    named = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    page = f"HTTP/1.1 200 OK\r\n{named}\r\n".encode() + PNG
    assert isinstance(fetch(site.page("/a.png", page), site), RequestFailure)


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + PNG, bytes(1 << 16)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n", CHUNK),
    ],
    ids=["until it closes", "in chunks", "in chunks, with a length"],
)
def test_an_endless_body_ends_at_the_limit(site: Any, start: bytes, again: bytes) -> None:
    """Memory is bounded by us, not by the peer."""
    url = site.page("/a.png", site.repeat(start, again, 0))
    tracemalloc.start()
    found = fetch(url, site)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == RequestFailure("the body is too large")
    assert peak < 40 * MAX_BYTES


@pytest.mark.parametrize(
    "page",
    [
        answer(PNG, length=len(PNG) + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x00",
        b"",
    ],
    ids=["short", "a chunk is missing", "no chunk", "half a status", "ssh", "tls", "nothing"],
)
def test_an_answer_that_breaks_off_is_none(site: Any, page: bytes) -> None:
    """Some decoders accept a truncated image."""
    found = fetch(site.page("/a.png", page), site, timeout_s=2.0)
    assert isinstance(found, RequestFailure)


PACES = {
    "silent": (b"", b""),
    "drips its status": (b"HTTP/1.1 200 ", b"O"),
    "drips a header": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "drips headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "drips its body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + PNG, b"x"),
    "drips chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "drips a chunk's length": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "always asks to wait": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("pace", PACES)
def test_a_slow_peer_ends_at_the_deadline(site: Any, pace: str) -> None:
    """Each read succeeds in time; the total deadline ends the request."""
    url = site.page("/a.png", site.repeat(*PACES[pace], 0.02))
    began = time.monotonic()
    assert fetch(url, site, timeout_s=TIMEOUT_S) == RequestFailure("no answer in time")
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S


def test_an_endless_header_ends_by_itself(site: Any) -> None:
    """Headers are kept too, so their number and length are bounded."""
    url = site.page("/a.png", site.repeat(b"HTTP/1.1 200 OK\r\nX: ", bytes(b"x" * (1 << 16)), 0))
    assert isinstance(fetch(url, site, timeout_s=TIMEOUT_S), RequestFailure)


def test_redirects_share_one_deadline(site: Any) -> None:
    """The deadline covers all redirects together."""

    def late(connection: socket.socket) -> None:
        site.gone.wait(0.3)
        connection.sendall(moved("/a.png"))

    url = site.page("/a.png", late)
    began = time.monotonic()
    assert fetch(url, site, timeout_s=TIMEOUT_S) == RequestFailure("no answer in time")
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    assert len(site.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(site: Any, other: Any, status: int) -> None:
    """Redirects to allowed sites are followed."""
    site.page("/a", moved(other.url + "/b", status))
    other.page("/b", moved("c?d=e", status))
    other.page("/c?d=e", answer())
    assert isinstance(fetch(site.url + "/a", site, other), HttpResponse)


@pytest.mark.parametrize(
    "to",
    [
        *("http://127.0.0.1:1/", "http://localhost/", "http://169.254.169.254/latest/", "http://[::1]/"),
        *("http://2130706433/", "http://[::ffff:7f00:1]/", "//127.0.0.1/"),
        *("//127.0.0.1:1/a", "http://10.0.0.1/"),
        *("file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1:6379/_P", "data:image/png;base64,A"),
        *("http://a:b@example.com/", "http://example.com\\@127.0.0.1/", "http://[", "javascript:0"),
    ],
)  # fmt: skip
def test_a_redirect_inside_is_not_followed(site: Any, to: str) -> None:
    """Each redirect target is checked against the egress policy."""
    assert isinstance(fetch(site.page("/a.png", moved(to)), site), RequestFailure)
    assert len(site.requests) == 1


def test_a_redirect_to_a_site_that_is_not_allowed_never_arrives(site: Any, other: Any) -> None:
    """Loopback is allowed at one port, not at its neighbour."""
    other.page("/b", answer())
    assert isinstance(fetch(site.page("/a.png", moved(other.url + "/b")), site), RequestFailure)
    assert other.requests == []


@pytest.mark.parametrize("to", ["/a.png", "/b.png"], ids=["to itself", "in a circle"])
def test_redirects_end(site: Any, to: str) -> None:
    """The number of redirects is limited."""
    site.page("/b.png", moved("/a.png"))
    assert fetch(site.page("/a.png", moved(to)), site) == RequestFailure("too many redirects")
    assert len(site.requests) == 4


def test_a_redirect_to_nowhere_is_an_error_page(site: Any) -> None:
    """A redirect without a Location header is a failure."""
    page = answer(status="302 Go")
    assert fetch(site.page("/a.png", page), site) == RequestFailure("HTTP 302")


def test_a_closed_port_is_no_answer() -> None:
    """A refused connection is a typed error."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    policy = EgressPolicy([f"127.0.0.1:{port}"])
    found = Fetcher(policy, timeout_s=PATIENCE_S, max_bytes=9).get(f"http://127.0.0.1:{port}/", is_png)
    assert found == RequestFailure("the connection failed")


def test_https_is_never_spoken_in_the_clear(site: Any) -> None:
    """The certificate is verified; there is no fallback to plain text."""
    found = fetch(site.page("/a.png", answer()).replace("http:", "https:"), site)
    assert found == RequestFailure("the TLS handshake failed")


def test_the_log_has_the_reason_and_no_query(site: Any) -> None:
    """Operators need to know why; a signed URL's query is a key."""
    with capture_logs() as logs:
        fetch(site.url + "/a.png?signature=hush", site)
        fetch("http://name:hush@10.0.0.1/x", site)
    assert [(entry["event"], entry["url"], entry["reason"]) for entry in logs] == [
        ("not_fetched", f"{site.url}/a.png", "HTTP 404"),
        ("not_fetched", "http://10.0.0.1/x", "it is not a plain http(s) URL"),
    ]
    assert "hush" not in repr(logs)
