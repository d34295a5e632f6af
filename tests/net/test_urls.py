"""Strict parsing of a URL's origin and request target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz.net.urls import Origin, origin, parse_http_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Example.COM/a", Origin("https", "example.com", 443)),
        ("http://example.com", Origin("http", "example.com", 80)),
        ("http://127.0.0.1:8000/x?y#z", Origin("http", "127.0.0.1", 8000)),
        ("http://[::1]:8000/", Origin("http", "[::1]", 8000)),
        ("https://user:pw@example.com/", None),
        ("https://good.example\\@evil.example/", None),
        ("https://evil.example\\.good.example/", None),
        ("https://exa mple.com/", None),
        ("https://example.com\n.evil.example/", None),
        ("file:///etc/passwd", None),
        ("ftp://example.com/", None),
        ("//example.com/", None),
        ("example.com", None),
        ("https://", None),
        ("http://example.com:99999/", None),
        ("", None),
    ],
)
def test_the_origin_is_the_host_that_the_client_connects_to(url: str, expected: Origin | None) -> None:
    """A policy check of the parsed origin is a check of the real connection."""
    assert origin(url) == expected


@given(st.text())
def test_any_text_is_parsed_without_an_exception(text: str) -> None:
    """URLs come from payloads and may be any text."""
    assert origin(text) is None or isinstance(origin(text), Origin)
    parsed = origin("http://" + text)
    assert parsed is None or parsed.host


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h", "/"),
        ("http://h/a%20b?c=d%20e#f", "/a%20b?c=d%20e"),
        ("http://h/%7ea/%2F", "/%7Ea/%2F"),
        ("http://h/ä", "/%C3%A4"),
        ("http://h/a/../b?../c", "/b?../c"),
        ("http://h?x=1", "/?x=1"),
    ],
)
def test_the_request_target_is_encoded_once_without_the_fragment(url: str, target: str) -> None:
    """Existing percent-encodings are unchanged, since signatures of URLs depend on them."""
    parsed = parse_http_url(url)
    assert parsed is not None
    assert parsed.target == target
