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

from ourvidz.net.client import RequestFailure
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import Download, Fetcher

TIMEOUT_S = 0.4
SLACK_S = 2.0
PATIENCE_S = 30.0
MAX_BYTES = 100_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def is_png(head: bytes) -> bool:
    return head.startswith(PNG[:8])


def fetch(url: str, *sites: Any, timeout_s: float = PATIENCE_S) -> Download | RequestFailure:
    """GET a URL with a policy that allows public addresses and `sites`."""
    policy = EgressPolicy([site.netloc for site in sites])
    # Without pauses between tries, which have tests of their own.
    return Fetcher(policy, timeout_s=timeout_s, max_bytes=MAX_BYTES, backoff_s=0).get(url, is_png)


def response(body: bytes = PNG, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    named = "".join(f"{header}\r\n" for header in headers)
    counted = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {counted}\r\n{named}\r\n".encode("latin-1") + body


def redirect(to: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def test_an_image_is_returned_unchanged(site: Any) -> None:
    """The body has exactly the bytes that the server sent."""
    result = fetch(site.page("/a.png", response()), site)
    assert isinstance(result, Download)
    assert result.body == PNG


def test_the_request_has_minimal_headers_and_uses_no_proxy(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies of the environment are ignored, and no content encoding is accepted."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    fetch(site.page("/a.png", response()), site)
    sent = site.requests[0].decode()
    assert "Accept-Encoding: identity\r\n" in sent
    assert f"Host: {site.netloc}\r\n" in sent
    assert "python" not in sent
    assert "Referer" not in sent


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream", "image/svg+xml"])
def test_the_image_type_is_detected_by_the_first_bytes(site: Any, kind: str) -> None:
    """The Content-Type header is ignored."""
    assert isinstance(fetch(site.page("/a", response(PNG, f"Content-Type: {kind}")), site), Download)


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
def test_a_body_without_an_image_signature_is_rejected(site: Any, body: bytes) -> None:
    """The Content-Type header does not matter."""
    result = fetch(site.page("/a.png", response(body, "Content-Type: image/png")), site)
    assert result == RequestFailure("the body is of another kind")


@pytest.mark.parametrize(
    "status", ["204 No", "206 Part", "304 Same", "401 Who", "403 No", "404 No", "500 Oh", "503 Oh"]
)
def test_a_status_other_than_200_is_a_failure(site: Any, status: str) -> None:
    """Partial content and other success statuses are not accepted either."""
    assert fetch(site.page("/a.png", response(status=status)), site) == RequestFailure(f"HTTP {status[:3]}")


@pytest.mark.parametrize(
    "page",
    [
        response(gzip.compress(PNG + bytes(10 << 20)), "Content-Encoding: gzip"),
        response(PNG, "Content-Encoding: br"),
        response(PNG, "Content-Encoding: gzip, identity"),
    ],
    ids=["a gzip bomb", "brotli", "two of them"],
)
def test_a_compressed_body_is_refused(site: Any, page: bytes) -> None:
    """The size limit would not hold for the decompressed body."""
    assert fetch(site.page("/a.png", page), site) == RequestFailure("the body is compressed")


def test_an_error_while_reading_the_body_is_a_request_failure(site: Any) -> None:
    """No exception is raised, so that the job can continue without its reference."""
    policy = EgressPolicy([site.netloc])
    fetcher = Fetcher(policy, timeout_s=PATIENCE_S, max_bytes=MAX_BYTES)
    result = fetcher.get(site.page("/a.png", response(b"x" * 99)), lambda head: int(head) > 0)
    assert result == RequestFailure("the answer cannot be read")


CHUNK = b"8000\r\n" + PNG + bytes(0x8000 - len(PNG)) + b"\r\n"


def test_a_content_length_over_the_limit_is_rejected_before_reading(site: Any) -> None:
    """The connection is closed without reading the body."""
    page = response(PNG, length=MAX_BYTES + 1)
    assert fetch(site.page("/a.png", page), site) == RequestFailure("the body is too large")


@pytest.mark.parametrize("lengths", [[f" {len(PNG)} "], [str(len(PNG))] * 2, [f"{len(PNG)},{len(PNG)}"]])
def test_a_repeated_equal_content_length_is_accepted(site: Any, lengths: list[str]) -> None:
    """Some proxies write the header twice."""
    named = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    page = f"HTTP/1.1 200 OK\r\n{named}\r\n".encode() + PNG
    result = fetch(site.page("/a.png", page), site)
    assert isinstance(result, Download)
    assert result.body == PNG


@pytest.mark.parametrize("digits", ["9" * 4300, "9" * 5000, "1" + "0" * 60_000, "0" * 5000 + "9"])
def test_a_content_length_of_thousands_of_digits_is_a_request_failure(site: Any, digits: str) -> None:
    """Python raises `ValueError` for integers of more than 4300 digits."""
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
def test_a_malformed_content_length_is_a_request_failure(site: Any, length: str) -> None:
    """The length of the body is unknown then, so the response is discarded (RFC 9112, section 6.3)."""
    page = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + PNG
    assert isinstance(fetch(site.page("/a.png", page), site), RequestFailure)


@pytest.mark.parametrize("lengths", [["5", "9"], ["5", "9" * 5000], ["+5"], [f"{len(PNG)}, {MAX_BYTES + 1}"]])
def test_contradicting_content_lengths_are_a_request_failure(site: Any, lengths: list[str]) -> None:
    """The length of the body is ambiguous, which allows response smuggling."""
    named = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    page = f"HTTP/1.1 200 OK\r\n{named}\r\n".encode() + PNG
    assert isinstance(fetch(site.page("/a.png", page), site), RequestFailure)


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + PNG, bytes(1 << 16)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n", CHUNK),
    ],
    ids=["until it closes", "in chunks", "in chunks, with a length"],
)
def test_an_endless_body_is_read_up_to_the_limit(site: Any, start: bytes, repeated: bytes) -> None:
    """The memory use is bounded by the size limit."""
    url = site.page("/a.png", site.repeat(start, repeated, 0))
    tracemalloc.start()
    result = fetch(url, site)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result == RequestFailure("the body is too large")
    assert peak < 40 * MAX_BYTES


@pytest.mark.parametrize(
    "page",
    [
        response(PNG, length=len(PNG) + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x00",
        b"",
    ],
    ids=["short", "a chunk is missing", "no chunk", "half a status", "ssh", "tls", "nothing"],
)
def test_a_truncated_response_is_a_request_failure(site: Any, page: bytes) -> None:
    """A truncated body is not returned, since some decoders would accept it."""
    result = fetch(site.page("/a.png", page), site, timeout_s=2.0)
    assert isinstance(result, RequestFailure)


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
def test_a_slow_response_ends_at_the_deadline(site: Any, pace: str) -> None:
    """Each read is within the read timeout, so a total deadline is needed."""
    url = site.page("/a.png", site.repeat(*PACES[pace], 0.02))
    started = time.monotonic()
    assert fetch(url, site, timeout_s=TIMEOUT_S) == RequestFailure("no answer in time")
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S


def test_the_size_of_the_headers_is_limited(site: Any) -> None:
    """Headers are held in memory as well."""
    url = site.page("/a.png", site.repeat(b"HTTP/1.1 200 OK\r\nX: ", bytes(b"x" * (1 << 16)), 0))
    assert isinstance(fetch(url, site, timeout_s=TIMEOUT_S), RequestFailure)


def test_one_deadline_covers_all_redirects(site: Any) -> None:
    """A chain of slow redirects cannot extend the total time."""

    def redirect_late(connection: socket.socket) -> None:
        site.gone.wait(0.3)
        connection.sendall(redirect("/a.png"))

    url = site.page("/a.png", redirect_late)
    started = time.monotonic()
    assert fetch(url, site, timeout_s=TIMEOUT_S) == RequestFailure("no answer in time")
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S
    assert len(site.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(site: Any, other_site: Any, status: int) -> None:
    """Redirects to allowed sites are followed."""
    site.page("/a", redirect(other_site.url + "/b", status))
    other_site.page("/b", redirect("c?d=e", status))
    other_site.page("/c?d=e", response())
    assert isinstance(fetch(site.url + "/a", site, other_site), Download)


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
def test_a_redirect_to_a_private_address_is_not_followed(site: Any, to: str) -> None:
    """Each redirect target is checked against the egress policy."""
    assert isinstance(fetch(site.page("/a.png", redirect(to)), site), RequestFailure)
    assert len(site.requests) == 1


def test_a_redirect_to_another_port_of_an_allowed_host_is_not_followed(site: Any, other_site: Any) -> None:
    """Hosts are allowed with their port."""
    other_site.page("/b", response())
    assert isinstance(fetch(site.page("/a.png", redirect(other_site.url + "/b")), site), RequestFailure)
    assert other_site.requests == []


@pytest.mark.parametrize("to", ["/a.png", "/b.png"], ids=["to itself", "in a circle"])
def test_the_number_of_redirects_is_limited(site: Any, to: str) -> None:
    """Redirect loops end as well."""
    site.page("/b.png", redirect("/a.png"))
    assert fetch(site.page("/a.png", redirect(to)), site) == RequestFailure("too many redirects")
    assert len(site.requests) == 4


def test_a_redirect_without_a_location_is_a_request_failure(site: Any) -> None:
    """Its status is handled like other error statuses."""
    page = response(status="302 Go")
    assert fetch(site.page("/a.png", page), site) == RequestFailure("HTTP 302")


def test_a_refused_connection_is_a_request_failure() -> None:
    """`get` returns a `RequestFailure` and raises nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    policy = EgressPolicy([f"127.0.0.1:{port}"])
    result = Fetcher(policy, timeout_s=PATIENCE_S, max_bytes=9).get(f"http://127.0.0.1:{port}/", is_png)
    assert result == RequestFailure("the connection failed")


def test_https_does_not_fall_back_to_plain_text(site: Any) -> None:
    """A server without TLS is a failure."""
    result = fetch(site.page("/a.png", response()).replace("http:", "https:"), site)
    assert result == RequestFailure("the TLS handshake failed")


def test_the_log_has_the_reason_and_no_query(site: Any) -> None:
    """Operators see why a download failed; the query of a signed URL is a credential and is not logged."""
    with capture_logs() as logs:
        fetch(site.url + "/a.png?signature=hush", site)
        fetch("http://name:hush@10.0.0.1/x", site)
    assert [(entry["event"], entry["url"], entry["reason"]) for entry in logs] == [
        ("not_fetched", f"{site.url}/a.png", "HTTP 404"),
        ("not_fetched", "http://10.0.0.1/x", "it is not a plain http(s) URL"),
    ]
    assert "hush" not in repr(logs)
