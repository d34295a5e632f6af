"""The connection to the Redis server: scripts, retries, and how outages are reported."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import AbstractBackoff, ConstantBackoff, ExponentialBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError
from redis.retry import Retry

from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.scripts import load_scripts
from ourvidz.records.codec import newer_record
from ourvidz.records.record import RECORD_VERSION
from ourvidz.redis_clients import UNREACHABLE, is_outage, is_retryable, open_async_client, open_client

Answer = TypeVar("Answer")

CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 2.0, 3.0
QUICK_TIMEOUT_S = 0.9
"""Timeout for connections and answers of quick calls."""
REPLICA_WAIT_S = 2.0
"""How long a call waits for replicas. Shorter than the timeout for answers."""
PATIENCE_S = 8.0
"""Time after its start within which a call may begin another try."""
PATIENT_RETRIES: tuple[AbstractBackoff, int] = (ExponentialBackoff(cap=1.0, base=0.05), 10)
"""Waits 7.5 s in all: callers do not notice a server that is killed and started again within that time."""
QUICK_RETRIES: tuple[AbstractBackoff, int] = (ConstantBackoff(0.05), 1)


def _retryable_until(deadline: float) -> Callable[[Exception], bool]:
    """Whether to try again, up to a time: against a server that hangs each try takes its whole timeout."""
    return lambda error: is_retryable(error) and time.monotonic() < deadline


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise the project's errors in place of redis-py's: `WorkerUnavailable` for outages, `NewerRelease` for
    a record of a newer release."""
    try:
        yield
    except ResponseError as error:
        if is_outage(error):
            raise WorkerUnavailable("the job store takes no writes") from error
        if "RECORD-TOO-NEW" in str(error):
            version, job_id = str(error).split("RECORD-TOO-NEW ", 1)[1].split(" ")[:2]
            raise newer_record(job_id, version) from None
        raise
    except UNREACHABLE as error:
        raise WorkerUnavailable("the job store cannot be reached") from error


class Connection:
    """One Redis server. Threads may share it; a forked child opens sockets of its own.

    `prefix` is what every key begins with. Without `clock` the server's time counts. `replica_acks`: how many
    replicas must confirm what `run_replicated_script` writes.
    """

    def __init__(
        self, url: str, *, prefix: str, clock: Callable[[], float] | None, replica_acks: int = 0
    ) -> None:
        self.url = url
        self._prefix = self.prefix = prefix
        self._clock = clock
        self.replica_acks = replica_acks
        # The client retries nothing itself: its retries nest, commands around connects.
        self.client: Any = open_client(
            url, connect_s=CONNECT_TIMEOUT_S, answer_s=ANSWER_TIMEOUT_S, health_check_interval=30
        )
        self.quick_client: Any = open_client(url, connect_s=QUICK_TIMEOUT_S, answer_s=QUICK_TIMEOUT_S)
        self._scripts = {verb: self.client.register_script(source) for verb, source in load_scripts().items()}

    def run_script(self, verb: str, *args: object, quick: bool = False) -> Any:
        """Run the script of a verb in one round trip; a None argument becomes ''. `quick` gives up within a
        second, else the call waits up to `PATIENCE_S` for a server that restarts."""
        script = self._scripts[verb]
        client = self.quick_client if quick else self.client
        argv = self._arguments(args)
        return self.with_retries(lambda: script(args=argv, client=client), quick=quick)

    def run_scripts(
        self, verb: str, calls: Sequence[tuple[object, ...]], *, quick: bool = False
    ) -> list[Any]:
        """Run the script of a verb once for each tuple of arguments, all in one round trip, and return the
        answers. Raises what `run_script` raises, for the first of them that fails; the others have run."""
        if len(calls) == 1:
            return [self.run_script(verb, *calls[0], quick=quick)]
        script, client = self._scripts[verb], self.quick_client if quick else self.client
        argvs = [self._arguments(args) for args in calls]

        def run() -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for argv in argvs:
                pipeline.evalsha(script.sha, 0, *argv)
            try:
                return list(pipeline.execute())
            except NoScriptError:
                return [script(args=argv, client=client) for argv in argvs]

        return self.with_retries(run, quick=quick)

    def run_replicated_script(self, verb: str, *args: object) -> Any:
        """Run a script as `run_script` does, and wait until as many replicas as the option `replica_acks`
        says have its writes and all earlier ones.

        Raises `WorkerUnavailable` when they do not confirm within `REPLICA_WAIT_S`. What the script wrote
        stays written.
        """
        if not self.replica_acks:
            return self.run_script(verb, *args)
        argv = self._arguments(args)

        def run() -> tuple[Any, int]:
            pipeline = self.client.pipeline(transaction=False)
            self._scripts[verb](args=argv, client=pipeline)
            # A call that changes nothing, because it was sent before, must wait for that first one too, and
            # `WAIT` goes by what this connection replicated last. A full server refuses no PUBLISH.
            pipeline.publish(f"{self._prefix}replicated", "")
            pipeline.wait(self.replica_acks, int(REPLICA_WAIT_S * 1000))
            answer, _, acks = pipeline.execute()
            return answer, int(acks)

        answer, acks = self.with_retries(run)
        if acks < self.replica_acks:
            raise WorkerUnavailable(
                f"this is recorded, but {acks} of {self.replica_acks} replicas have confirmed it: repeat it,"
                " a job under the same id"
            )
        return answer

    def _arguments(self, args: tuple[object, ...]) -> list[Any]:
        return [
            self._prefix,
            "" if self._clock is None else f"{self._clock():.6f}",
            RECORD_VERSION,
            *("" if arg is None else arg for arg in args),
        ]

    def with_retries(self, command: Callable[[], Answer], *, quick: bool = False) -> Answer:
        """Run a command, again after an outage. `WorkerUnavailable` when the outage lasts."""
        backoff, retries = QUICK_RETRIES if quick else PATIENT_RETRIES
        retry = Retry(backoff, retries, supported_errors=(*UNREACHABLE, ResponseError))
        is_retryable = _retryable_until(time.monotonic() + PATIENCE_S)
        with translated_errors():
            return retry.call_with_retry(command, self._before_retry, is_retryable=is_retryable)

    def _before_retry(self, error: Exception) -> None:
        """Close the connections to a server that has become read-only, so that the retry connects again."""
        if isinstance(error, ReadOnlyError):
            # A primary that was demoted: its address may lead to the new one by now.
            self.client.connection_pool.disconnect()
            self.quick_client.connection_pool.disconnect()

    def read_hashes(self, names: Iterable[str]) -> list[dict[str, str]]:
        """Read many hashes in one round trip; an empty one for each key that is missing."""
        keys = list(names)

        def read() -> list[dict[str, str]]:
            pipeline = self.client.pipeline(transaction=False)
            for key in keys:
                pipeline.hgetall(key)
            hashes: list[dict[str, str]] = pipeline.execute()
            return hashes

        return self.with_retries(read) if keys else []

    def now(self) -> float:
        """Unix seconds of the ledger's time, which never goes back: see `scripts/lib/clock.lua`."""
        return float(self.run_script("now"))

    def ping(self) -> None:
        """Raise `WorkerUnavailable` within a second when the server does not answer."""
        self.with_retries(self.quick_client.ping, quick=True)

    def open_async_client(self) -> Any:
        """A client of its own for the running event loop; the caller closes it."""
        return open_async_client(
            self.url, connect_s=CONNECT_TIMEOUT_S, answer_s=ANSWER_TIMEOUT_S, health_check_interval=10
        )

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        self.client.close()
        self.quick_client.close()


async def retry_async(command: Callable[[], Any]) -> Any:
    """`Connection.with_retries` for coroutines."""
    retry = AsyncRetry(*PATIENT_RETRIES, supported_errors=cast(Any, (*UNREACHABLE, ResponseError)))

    async def before_retry(_error: Exception) -> None:
        return None

    is_retryable = _retryable_until(time.monotonic() + PATIENCE_S)
    with translated_errors():
        return await retry.call_with_retry(command, before_retry, is_retryable=is_retryable)


def new_call_token() -> str:
    """A name for one call: the server answers a call sent again after a lost reply with its first answer."""
    return uuid.uuid4().hex
