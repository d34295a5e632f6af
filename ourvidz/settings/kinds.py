"""Value types of settings, with their validators."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, overload
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from ourvidz import sentinel_url
from ourvidz.service_key import key_refusal

_NETLOC = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:[0-9]{1,5})?")
_UNENCODED = frozenset('\\ "<>^`{|}')
"""Characters that `net.urls` refuses in a URL."""
_KEY_PREFIX = re.compile(r"[A-Za-z0-9._:/{}-]*")
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}")
_PATH_SEGMENT = re.compile(r"(?!\.+\Z)[A-Za-z0-9._:-]+")
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)/([0-9]{1,6}(?:\.[0-9]{1,3})?)")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Rate:
    """A quota of units per window of seconds, refilled continuously."""

    quota: float
    window_s: float

    def __str__(self) -> str:
        return f"{self.quota:.12g}/{self.window_s:.12g}"


def _rate(value: object) -> object:
    """Parse `UNITS/SECONDS`; `none` is no limit."""
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    match = _RATE.fullmatch(value)
    rate = Rate(*map(float, match.groups())) if match else None
    if rate is None or not (rate.quota >= 1 and rate.window_s >= 1):
        raise ValueError("must be UNITS/SECONDS, each at least 1, such as 36000/3600, or none")
    return rate


class Topic(BaseModel):
    """Base class of settings groups. `Settings` inherits the fields of every group."""


def env(name: str, default: Any = None, **bounds: Any) -> Any:
    """A field that is read from the environment variable `name`. `bounds` are pydantic's, such as `gt=0`."""
    return Field(default=default, validation_alias=name, **bounds)


def with_scheme(value: str, *schemes: str) -> str:
    """Return `value` unchanged. Raises `ValueError` if it is no URL with one of these schemes."""
    if urlsplit(value).scheme not in schemes:
        raise ValueError(f"must be a URL that starts with {' or '.join(f'{one}://' for one in schemes)}")
    return value


def _split(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        if "/" in entry:
            ip_network(entry)
        elif not _HOST.fullmatch(entry):
            raise ValueError(f"{entry!r} must be host, host:port, [IPv6], [IPv6]:port, or ADDRESS/BITS")
    return value


def _addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        try:
            ip_network(entry)
        except ValueError:
            raise ValueError(f"{entry!r} must be an IP address, or a network such as 10.0.0.0/8") from None
    return value


def _ports(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or not all(0 <= port <= 65535 for port in value):
        raise ValueError("must be ports from 0 to 65535")
    return value


def _list_names(value: tuple[str, ...]) -> tuple[str, ...]:
    return () if value == ("none",) else value


def _key_prefix(value: str) -> str:
    """Return `value` unchanged. The broker subscribes to channels by pattern, so a prefix must not be one."""
    if not _KEY_PREFIX.fullmatch(value):
        raise ValueError("must be letters, digits and any of . _ : / { } -")
    return value


def _bucket_name(value: str) -> str:
    if not _BUCKET_NAME.fullmatch(value):
        raise ValueError("must be 3 to 63 letters, digits and any of . _ -")
    return value


def _folder_path(value: str) -> str:
    """Return `value` without slashes at its ends. Raises `ValueError` for segments that could be misread."""
    path = value.strip("/")
    if not all(_PATH_SEGMENT.fullmatch(segment) for segment in path.split("/")) and path:
        raise ValueError("must be a path of letters, digits and any of . _ : -")
    return path


def _redis_url(value: str) -> str:
    """Return `value` unchanged. Raises `ValueError` if it is no URL of a Redis server or of sentinels."""
    with_scheme(value, "redis", "rediss", "unix", "redis+socket", *sentinel_url.SCHEMES)
    if sentinel_url.is_sentinel_url(value):
        sentinel_url.parse_sentinel_url(value)
    elif not value.startswith(("unix:", "redis+socket:")):
        try:
            urlsplit(value).port  # noqa: B018
        except ValueError:  # whose text has a part of the password
            raise ValueError(
                "the port must be a number; characters such as / and # in a password must be percent-encoded"
            ) from None
    return value


def _web_url(value: str) -> str:
    """Return `value` unchanged. Raises `ValueError` for a URL that `net` would not call: without a host, with
    a user name, a port that does not exist, or characters that must be percent-encoded."""
    parts = urlsplit(with_scheme(value, "http", "https"))
    if not parts.hostname:
        raise ValueError("must be a URL with a host")
    if parts.username is not None:
        raise ValueError("must be a URL without a user name: it would be sent to nobody")
    if not value.isprintable() or _UNENCODED & set(value):
        raise ValueError("must be a URL whose special characters are percent-encoded")
    if not _NETLOC.fullmatch(parts.netloc) or parts.port == 0:
        raise ValueError("must be a URL with a host, and a port from 1 to 65535 if any")
    return value


def _service_key(value: SecretStr) -> SecretStr:
    """Return `value` unchanged. Raises `ValueError` for a key that opens nothing; the message has no key."""
    if refused := key_refusal(value.get_secret_value()):
        raise ValueError(refused)
    return value


def _secret_redis_url(value: SecretStr) -> SecretStr:
    """Return `value` unchanged. Raises `ValueError` as `_redis_url` does."""
    _redis_url(value.get_secret_value())
    return value


@overload
def reveal(secret: SecretStr) -> str: ...
@overload
def reveal(secret: SecretStr | None) -> str | None: ...
def reveal(secret: SecretStr | None) -> str | None:
    """The text of a secret setting. Call it where the secret is used, so that no other object keeps it."""
    return None if secret is None else secret.get_secret_value()


def reveal_all(secrets: Iterable[SecretStr]) -> tuple[str, ...]:
    """The texts of several secrets."""
    return tuple(map(reveal, secrets))


RateLimit = Annotated[Rate | None, NoDecode, BeforeValidator(_rate)]
"""A `Rate`, or None for no limit."""
StringList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A list separated by commas or spaces."""
Hosts = Annotated[StringList, AfterValidator(_hosts)]
"""Hosts with an optional port, and networks in CIDR notation."""
Addresses = Annotated[StringList, AfterValidator(_addresses)]
"""IP addresses, and networks in CIDR notation."""
Ports = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split), AfterValidator(_ports)]
ListNames = Annotated[StringList, AfterValidator(_list_names)]
"""Names of Redis lists; `none` stands for no list."""
KeyPrefix = Annotated[str, AfterValidator(_key_prefix)]
"""What the keys of one installation begin with on a shared Redis server."""
LocalPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""An absolute path on this machine; `~` is expanded to the home directory."""
Secret = SecretStr
"""A value that no `repr`, log line or traceback shows; `reveal` returns its text."""
SecretList = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
ServiceKey = Annotated[SecretStr, AfterValidator(_service_key)]
"""A Supabase service key, or the bearer token of another receiver."""
BucketName = Annotated[str, AfterValidator(_bucket_name)]
FolderPath = Annotated[str, AfterValidator(_folder_path)]
"""A relative path in a storage, or nothing."""
RedisURL = Annotated[SecretStr, AfterValidator(_secret_redis_url)]
"""A URL that may hold a password."""
WebURL = Annotated[str, AfterValidator(_web_url)]
