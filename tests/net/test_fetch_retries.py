"""A download that fails for a moment is tried again, with the same checks, within the same time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from ssrfguard.resolvers import UdpResolver
from structlog.testing import capture_logs

from ourvidz.net.client import RequestFailure
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import MAX_TRIES, Download, Fetcher

PATIENCE_S = 30.0
SHORT_S = 0.01
SLACK_S = 5.0
MAX_BYTES = 100_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def is_png(head: bytes) -> bool:
    return head.startswith(PNG[:8])


def fetch(
    url: str, *hosts: str, timeout_s: float = PATIENCE_S, backoff_s: float = SHORT_S, **options: Any
) -> Download | RequestFailure:
    """GET a URL with a policy that allows public addresses and `hosts`."""
    policy = EgressPolicy(hosts, **options)
    return Fetcher(policy, timeout_s=timeout_s, max_bytes=MAX_BYTES, backoff_s=backoff_s).get(url, is_png)


def response(status: str = "200 OK", *headers: str, body: bytes = PNG, length: int | None = None) -> bytes:
    counted = len(body) if length is None else length
    named = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status}\r\nContent-Length: {counted}\r\n{named}\r\n".encode() + body


def in_turn(*pages: bytes) -> Callable[[socket.socket], None]:
    """A page that answers with one of `pages` after the other, and repeats the last."""
    left = list(pages)

    def answer(connection: socket.socket) -> None:
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return answer


@pytest.mark.parametrize("status", ["429 Slow", "500 Oh", "502 Oh", "503 Oh", "504 Late", "599 Oh"])
def test_a_status_that_may_be_gone_is_tried_again(site: Any, status: str) -> None:
    """One 503 of a busy storage server does not drop the reference of a job."""
    url = site.page("/a.png", in_turn(response(status), response()))
    assert fetch(url, site.netloc) == Download(PNG, tries=2)


@pytest.mark.parametrize(
    "broken",
    [b"", b"HTTP/1.1 200", response(length=len(PNG) + 1), response(body=PNG[:40], length=90)],
    ids=["closed", "half a status", "a byte is missing", "a body that broke off"],
)
def test_a_connection_that_breaks_is_tried_again(site: Any, broken: bytes) -> None:
    """The body is that of one response: the parts of two are never put together."""
    url = site.page("/a.png", in_turn(broken, broken, response()))
    assert fetch(url, site.netloc) == Download(PNG, tries=3)


@pytest.mark.parametrize("page", [b"", response("503 Oh")], ids=["closed", "503"])
def test_it_is_tried_three_times(site: Any, page: bytes) -> None:
    """A server that is gone is not called for the whole time."""
    assert isinstance(fetch(site.page("/a.png", page), site.netloc), RequestFailure)
    assert len(site.requests) == MAX_TRIES == 3


@pytest.mark.parametrize(
    "page",
    [
        *(response(f"{status} No") for status in (201, 206, 304, 400, 401, 403, 404, 408, 410, 422, 451)),
        response(length=MAX_BYTES + 1),
        response("200 OK", "Content-Encoding: gzip"),
        response(body=b"<html>" + bytes(90)),
        response("302 Go", "Location: http://169.254.169.254/latest/", body=b""),
        response("302 Go", "Location: file:///etc/passwd", body=b""),
    ],
)
def test_what_will_not_change_is_requested_once(site: Any, page: bytes) -> None:
    """Another try would only cost the job its time, and the server its patience."""
    assert isinstance(fetch(site.page("/a.png", page), site.netloc), RequestFailure)
    assert len(site.requests) == 1


def test_the_pause_is_the_one_that_the_server_asks_for(site: Any) -> None:
    """`Retry-After` counts where it is longer than our own pause."""
    url = site.page("/a.png", in_turn(response("429 Slow", "Retry-After: 1"), response()))
    started = time.monotonic()
    assert fetch(url, site.netloc) == Download(PNG, tries=2)
    assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize("header", ["60", "9" * 400, "Fri, 15 Jan 2100 08:00:30 GMT"])
def test_a_pause_beyond_the_deadline_ends_the_download(site: Any, header: str) -> None:
    """Waiting for a try that cannot be made would be lost time. The server controls this header."""
    url = site.page("/a.png", response("503 Oh", f"Retry-After: {header}"))
    with capture_logs() as logs:
        assert fetch(url, site.netloc) == RequestFailure("HTTP 503")
    assert len(site.requests) == 1
    assert [entry["event"] for entry in logs] == ["not_fetched"]


@pytest.mark.parametrize("header", ["-5", "soon", "", "1e9"])
def test_a_malformed_retry_after_is_ignored(site: Any, header: str) -> None:
    """Our own pause remains."""
    url = site.page("/a.png", in_turn(response("503 Oh", f"Retry-After: {header}"), response()))
    assert fetch(url, site.netloc) == Download(PNG, tries=2)


def test_all_tries_share_one_deadline(site: Any) -> None:
    """A server that fails late cannot hold a worker for three times as long."""

    def fail_late(connection: socket.socket) -> None:
        site.gone.wait(0.25)
        connection.sendall(response("503 Oh"))

    started = time.monotonic()
    result = fetch(site.page("/a.png", fail_late), site.netloc, timeout_s=0.4)
    assert isinstance(result, RequestFailure)
    assert time.monotonic() - started < 0.4 + SLACK_S
    assert len(site.requests) <= 2


def test_a_redirect_is_followed_again_from_its_start(site: Any, other_site: Any) -> None:
    """The first server may have signed a URL that is valid for one request."""
    url = site.page("/a", response("302 Go", f"Location: {other_site.url}/b", body=b""))
    other_site.page("/b", in_turn(response("503 Oh"), response()))
    assert fetch(url, site.netloc, other_site.netloc) == Download(PNG, tries=2)
    assert (len(site.requests), len(other_site.requests)) == (2, 2)


def test_the_second_try_is_checked_like_the_first(site: Any, other_site: Any) -> None:
    """A server that fails once could otherwise redirect the second try into the private network."""
    inside = response("302 Go", f"Location: {other_site.url}/b", body=b"")
    url = site.page("/a", in_turn(response("503 Oh"), inside))
    other_site.page("/b", response())
    assert isinstance(fetch(url, site.netloc), RequestFailure)
    assert (len(site.requests), other_site.requests) == (2, [])


def test_a_name_that_changes_between_two_tries_is_checked_again(
    site: Any, name_server: Callable[[list[str]], Any]
) -> None:
    """The author of a URL controls its name server: DNS rebinding must not use the second look-up."""
    names = name_server(["127.0.0.1", "169.254.169.254"])
    resolver = UdpResolver(nameservers=("127.0.0.1",), nameserver_port=names.port, families=(socket.AF_INET,))
    site.page("/a.png", response("503 Oh"))
    host = f"rebind.example:{site.port}"
    result = fetch(f"http://{host}/a.png", host, resolver=resolver)
    assert result == RequestFailure("the host may not be called")
    assert (names.query_count, len(site.requests)) == (2, 1)


def test_the_log_tells_the_tries_and_no_query(site: Any) -> None:
    """Operators see which server fails now and then; the query of a signed URL is a credential."""
    site.page("/a.png?signature=hush", in_turn(response("503 Oh"), response("404 Gone")))
    with capture_logs() as logs:
        fetch(site.url + "/a.png?signature=hush", site.netloc)
    assert [(entry["event"], entry["reason"], entry["tries"]) for entry in logs] == [
        ("fetch_retried", "HTTP 503", 1),
        ("not_fetched", "HTTP 404", 2),
    ]
    assert "hush" not in repr(logs)
