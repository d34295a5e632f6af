"""Opens redis-py clients for a URL: one server, a Unix socket, or a service that sentinels watch; and tells
outages of the server from other errors."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, ReadOnlyError, ResponseError
from redis.retry import Retry

from ourvidz.sentinel_url import is_sentinel_url, parse_sentinel_url

UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, OSError)
UNAVAILABLE = (
    *("LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "MISCONF", "READONLY", "TRYAGAIN", "CLUSTERDOWN"),
    *("OOM", "ERR max daily request limit", "ERR max requests limit"),
)
"""Prefixes of errors of a server that is failing over, full or over its quota: outages, not mistakes."""


def open_client(url: str, *, connect_s: float, answer_s: float, **options: Any) -> Any:
    """Return a client whose connections and answers time out. It repeats nothing; its caller does.

    `options` are redis-py's. Answers are text unless `decode_responses` is False.
    """
    options = {"retry": Retry(NoBackoff(), 0), **_options(connect_s, answer_s), **options}
    if is_sentinel_url(url):
        return _of_service(redis.sentinel.Sentinel, url, options)
    return redis.Redis.from_url(_spelled_for_redis(url), **options)


def open_async_client(url: str, *, connect_s: float, answer_s: float, **options: Any) -> Any:
    """`open_client` for coroutines; the client belongs to the running event loop."""
    options = {"retry": AsyncRetry(NoBackoff(), 0), **_options(connect_s, answer_s), **options}
    if is_sentinel_url(url):
        return _of_service(redis.asyncio.sentinel.Sentinel, url, options)
    return redis.asyncio.Redis.from_url(_spelled_for_redis(url), **options)


def _of_service(sentinel_class: Any, url: str, options: dict[str, Any]) -> Any:
    """A client of the primary that the sentinels name; after a failover it connects to the new one."""
    parsed = parse_sentinel_url(url)
    # All sentinels together have the time of one connection.
    patience_s = options["socket_connect_timeout"] / len(parsed.sentinels)
    timeouts = {"socket_connect_timeout": patience_s, "socket_timeout": patience_s}
    sentinel = sentinel_class(
        parsed.sentinels,
        sentinel_kwargs={**parsed.sentinel_options, **timeouts, "retry": options["retry"]},
        **parsed.server_options,
        **options,
    )
    return sentinel.master_for(parsed.service)


def _options(connect_s: float, answer_s: float) -> dict[str, Any]:
    # RESP2 has one shape for every server version.
    return {
        "decode_responses": True,
        # Raw bytes of callers' lists come back as they were.
        "encoding_errors": "surrogateescape",
        "protocol": 2,
        "socket_connect_timeout": connect_s,
        "socket_timeout": answer_s,
    }


def _spelled_for_redis(url: str) -> str:
    """A URL as redis-py spells it; Kombu spells Unix sockets differently."""
    if url.startswith("redis+socket://"):
        return url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    return url


def is_retryable(error: Exception) -> bool:
    """Whether a command may succeed when it is sent again: after outages, not after a wrong password."""
    if isinstance(error, ResponseError):
        return is_outage(error)
    return not isinstance(error, AuthenticationError | AuthorizationError)


def is_outage(error: ResponseError) -> bool:
    """Whether an error answer means that the server is unavailable. redis-py strips the prefix of some, and
    puts the command before an answer in a pipeline."""
    answer = str(error).rpartition("of pipeline caused error: ")[2]
    return isinstance(error, redis.exceptions.OutOfMemoryError | ReadOnlyError) or answer.startswith(
        UNAVAILABLE
    )
