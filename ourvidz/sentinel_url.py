"""URLs of a Redis service that sentinels watch, and their form for Kombu.

    redis+sentinel://user:password@host:26379,host:26379,host:26379/service/0?sentinel_password=secret

`rediss+sentinel://` is the same over TLS, to the sentinels too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SCHEMES = ("redis+sentinel", "rediss+sentinel")
DEFAULT_PORT = 26379
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@]+)(?::([0-9]{1,5}))?")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class SentinelURL:
    """The addresses of the sentinels, the name of the service, and how to log in.

    `credentials` are those of the Redis servers, `sentinel_credentials` those of the sentinels: `username`
    and `password`, as far as they are set. `tls` holds redis-py's `ssl_…` options, None without TLS.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    sentinel_credentials: dict[str, str] = field(default_factory=dict, repr=False)
    tls: dict[str, Any] | None = None

    @property
    def server_options(self) -> dict[str, Any]:
        """Options of redis-py for connections to the Redis servers."""
        return {**self.credentials, **self._tls_options(), "db": self.database}

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """Options of redis-py for connections to the sentinels."""
        return {**self.sentinel_credentials, **self._tls_options()}

    @property
    def broker_url(self) -> str:
        """The URL for Kombu, which repeats everything for each sentinel."""
        names = [quote(self.credentials.get(part, ""), safe="") for part in ("username", "password")]
        login = f"{names[0]}:{names[1]}@" if any(names) else ""
        hosts = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.sentinels)
        return ";".join(f"sentinel://{login}{host}/{self.database}" for host in hosts)

    def _tls_options(self) -> dict[str, Any]:
        return {} if self.tls is None else {"ssl": True, **self.tls}


def is_sentinel_url(url: str) -> bool:
    """Whether a Redis URL names sentinels."""
    return url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def parse_sentinel_url(url: str) -> SentinelURL:
    """Parse such a URL. Raises `ValueError` with what is wrong, as in 'must be …'."""
    parts = urlsplit(url)
    login, _, addresses = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("must be a URL with the name of the service after the sentinels: …:26379/NAME/0")
    if database and not database.isdigit():
        raise ValueError(f"must be a URL that ends in the number of a database, not in {database!r}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = parts.scheme == "rediss+sentinel"
    known = (*_SENTINEL_OPTIONS, *(_TLS_OPTIONS if tls else ()))
    unknown = [name for name in query if name not in known]
    if unknown:
        raise ValueError(f"must be a URL whose options are {', '.join(known)}, not {', '.join(unknown)}")
    return SentinelURL(
        sentinels=tuple(_address(one) for one in addresses.split(",")),
        service=unquote(service),
        database=int(database or 0),
        credentials=_credentials(unquote(username), unquote(password)),
        sentinel_credentials=_credentials(*(query.get(name, "") for name in _SENTINEL_OPTIONS)),
        tls=_tls(query) if tls else None,
    )


def _address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError("must be a URL with the addresses of sentinels, host:port,host:port")
    return match[1].strip("[]"), int(match[2] or DEFAULT_PORT)


def _credentials(username: str, password: str) -> dict[str, str]:
    return {name: value for name, value in (("username", username), ("password", password)) if value}


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """A valid certificate is required unless the URL says otherwise."""
    options: dict[str, Any] = {name: query[name] for name in _TLS_OPTIONS if name in query}
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() == "true"
    return {"ssl_cert_reqs": "required", **options}
