"""The way to the Redis server: scripts, retries, and what an outage looks like from outside."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from typing import Any, TypeVar, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import AbstractBackoff, ConstantBackoff, ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, ReadOnlyError, ResponseError
from redis.retry import Retry

from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.codec import newer_record
from ourvidz.ledger.record import RECORD_VERSION

Answer = TypeVar("Answer")

UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, OSError)
AWAY = (
    *("LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "MISCONF", "READONLY", "TRYAGAIN", "CLUSTERDOWN"),
    *("OOM", "ERR max daily request limit", "ERR max requests limit"),
)
"""How a server that is failing over, full or over its quota begins its refusals: an outage, not a mistake."""

CONNECT_S, ANSWER_S = 2.0, 3.0
QUICK_S = 0.9
"""How long the hot path waits for a connection or an answer."""
PATIENCE_S = 8.0
"""How long after its start a call may begin another try."""
FOLLOW_S = 1.0
"""How long one blocking read of a stream lasts."""
CALM: tuple[AbstractBackoff, int] = (ExponentialBackoff(cap=1.0, base=0.05), 10)
"""Waits 7.5 s in all: a server that is killed and started again within that time is not noticed."""
QUICK: tuple[AbstractBackoff, int] = (ConstantBackoff(0.05), 1)


def _retryable(error: Exception) -> bool:
    if isinstance(error, ResponseError):
        return _is_away(error)
    return not isinstance(error, AuthenticationError | AuthorizationError)


def _patience() -> Callable[[Exception], bool]:
    """Whether to try again, for `PATIENCE_S` from now: a server that hangs costs a try its whole timeout."""
    ends = time.monotonic() + PATIENCE_S
    return lambda error: _retryable(error) and time.monotonic() < ends


def _is_away(refused: ResponseError) -> bool:
    """Whether a refusal means that the server is away. redis-py takes the prefix off some of them."""
    return isinstance(refused, redis.exceptions.OutOfMemoryError | ReadOnlyError) or str(refused).startswith(
        AWAY
    )


@contextmanager
def outages() -> Any:
    """Turn what redis-py raises into the errors of the project."""
    try:
        yield
    except ResponseError as refused:
        if _is_away(refused):
            raise WorkerUnavailable("the job store takes no writes") from refused
        if "RECORD-TOO-NEW" in str(refused):
            version, job_id = str(refused).split("RECORD-TOO-NEW ", 1)[1].split(" ")[:2]
            raise newer_record(job_id, version) from None
        raise
    except UNREACHABLE as gone:
        raise WorkerUnavailable("the job store cannot be reached") from gone


def _redis_url(url: str) -> str:
    """Kombu writes Unix sockets in its own way."""
    if url.startswith("redis+socket://"):
        return url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    return url


def _options(connect_s: float, answer_s: float) -> dict[str, Any]:
    # The client's own retries nest (commands around connects), so they are off and `Link` does it once.
    # RESP2 has one shape for every server version.
    return {
        "decode_responses": True,
        "protocol": 2,
        "socket_connect_timeout": connect_s,
        "socket_timeout": answer_s,
    }


class Link:
    """One Redis server as the ledger uses it. Threads may share it; a forked child gets its own sockets."""

    def __init__(self, url: str, *, prefix: str, clock: Callable[[], float] | None) -> None:
        self._url = _redis_url(url)
        self._prefix = prefix
        self._clock = clock
        never = Retry(NoBackoff(), 0)
        self.client: Any = redis.Redis.from_url(
            self._url, retry=never, health_check_interval=30, **_options(CONNECT_S, ANSWER_S)
        )
        self._quick_client: Any = redis.Redis.from_url(self._url, retry=never, **_options(QUICK_S, QUICK_S))
        self._followers: dict[asyncio.AbstractEventLoop, tuple[Any, int]] = {}
        folder = files("ourvidz.ledger.lua")
        prelude = (folder / "prelude.lua").read_text(encoding="utf-8")
        self._scripts = {
            each.name.removesuffix(".lua"): self.client.register_script(
                prelude + each.read_text(encoding="utf-8")
            )
            for each in folder.iterdir()
            if each.name.endswith(".lua") and each.name != "prelude.lua"
        }

    def call(self, verb: str, *args: object, quick: bool = False) -> Any:
        """Run a script in one round trip. `quick` gives up within a second, else a restart is ridden out."""
        script = self._scripts[verb]
        client = self._quick_client if quick else self.client
        given: list[Any] = [
            self._prefix,
            self._time(),
            RECORD_VERSION,
            *("" if arg is None else arg for arg in args),
        ]
        return self.ask(lambda: script(args=given, client=client), quick=quick)

    def ask(self, question: Callable[[], Answer], *, quick: bool = False) -> Answer:
        """Ask the server something, again if need be. `WorkerUnavailable` when it stays away."""
        waits, times = QUICK if quick else CALM
        retry = Retry(waits, times, supported_errors=(*UNREACHABLE, ResponseError))
        with outages():
            return retry.call_with_retry(question, self._again, is_retryable=_patience())

    def _again(self, error: Exception) -> None:
        if isinstance(error, ReadOnlyError):
            # A primary that was demoted: its address may lead to the new one by now.
            self.client.connection_pool.disconnect()
            self._quick_client.connection_pool.disconnect()

    def hashes(self, names: Iterable[str]) -> list[dict[str, str]]:
        """Many hashes in one round trip, an empty one for each that is missing."""
        wanted = list(names)

        def read() -> list[dict[str, str]]:
            pipe = self.client.pipeline(transaction=False)
            for name in wanted:
                pipe.hgetall(name)
            found: list[dict[str, str]] = pipe.execute()
            return found

        return self.ask(read) if wanted else []

    def now(self) -> float:
        """The injected clock, or the server's."""
        if self._clock is not None:
            return self._clock()
        seconds, micros = self.ask(self.client.time)
        return float(seconds) + float(micros) / 1e6

    def _time(self) -> str:
        return "" if self._clock is None else f"{self._clock():.6f}"

    def ping(self) -> None:
        """Raise `WorkerUnavailable` within a second when nobody answers."""
        self.ask(self._quick_client.ping, quick=True)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[Any]:
        """A client of this event loop, shared by its followers and closed by the last of them."""
        loop = asyncio.get_running_loop()
        client, users = self._followers.get(loop) or (self._async_client(), 0)
        self._followers[loop] = (client, users + 1)
        try:
            yield client
        finally:
            client, users = self._followers.pop(loop)
            if users > 1:
                self._followers[loop] = (client, users - 1)
            else:
                await client.aclose()

    def _async_client(self) -> Any:
        never = AsyncRetry(NoBackoff(), 0)
        return redis.asyncio.Redis.from_url(
            self._url, retry=never, **_options(CONNECT_S, FOLLOW_S + ANSWER_S)
        )

    def close(self) -> None:
        """Close the idle connections; a closed link opens new ones when it is used again."""
        self.client.close()
        self._quick_client.close()


async def ask_patiently(question: Callable[[], Any]) -> Any:
    """`Link.ask` for coroutines."""
    retry = AsyncRetry(*CALM, supported_errors=cast(Any, (*UNREACHABLE, ResponseError)))

    async def pass_on(_error: Exception) -> None:
        return None

    with outages():
        return await retry.call_with_retry(question, pass_on, is_retryable=_patience())


def call_token() -> str:
    """Names one call, so that the server knows it when it is sent again after a lost reply."""
    return uuid.uuid4().hex
