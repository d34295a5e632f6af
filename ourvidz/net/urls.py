"""Parsing of http(s) URLs: the single place that decides which host a URL names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

_DEFAULT_PORTS = {"http": 80, "https": 443}
_FORBIDDEN = frozenset('\\ "<>^`{|}')


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a URL. `host` is lower case; IPv6 addresses keep their brackets."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """`host:port`, always with the port."""
        return f"{self.host}:{self.port}"

    def is_among(self, hosts: Collection[str]) -> bool:
        """Whether a list of allowed hosts contains this `host` (any port) or this `host:port`."""
        return any(entry.lower() in (self.host, self.netloc) for entry in hosts)


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """A parsed http(s) URL. `target` is the percent-encoded path and query, as the request line has it."""

    origin: Origin
    target: str


def parse_http_url(url: str) -> HttpUrl | None:
    """Parse an http(s) URL; None for anything else.

    URLs with a user name, and with characters that URL parsers disagree about, are rejected too. The client
    sends its requests to the parsed parts and never parses the text again, so that what was checked is what
    is called.
    """
    if not url.isprintable() or _FORBIDDEN & set(url):
        return None
    try:
        parts = parse_url(url)
    except LocationParseError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.host or parts.auth is not None:
        return None
    origin = Origin(parts.scheme, parts.host.lower(), parts.port or _DEFAULT_PORTS[parts.scheme])
    return HttpUrl(origin, parts.request_uri)


def origin(url: str) -> Origin | None:
    """The origin of an http(s) URL; None where `parse_http_url` returns None."""
    parsed = parse_http_url(url)
    return None if parsed is None else parsed.origin
