"""Fixtures: shims in this process, with an in-process broker or one on Redis, and a fake chat worker."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import requests
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from ourvidz.errors import Cancelled, OurvidzError, WorkerLost
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Verdict, Worker
from ourvidz.settings import Settings, load_settings
from ourvidz.storage.store import Store
from ourvidz.web.main import create_app
from ourvidz.wiring import control
from tests.factories import publishing_to

LOCAL = "http://127.0.0.1:7860"
USER = "3f0c2a54-6f0a-4d0e-9a3b-0d3a4c1f7b11"


class Shim:
    """A running application with its ledger and store; also acts as a worker on its jobs."""

    def __init__(self, client: TestClient, services: control.ControlPlane) -> None:
        self.client = client
        self.ledger: Ledger = services.ledger
        self.store = services.store
        self.settings = services.settings

    @staticmethod
    def payload(**fields: Any) -> dict[str, Any]:
        """The payload of a small image job; `fields` are added or replaced."""
        job = {"id": "job-1", "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": USER}
        return {**job, **fields}

    @staticmethod
    def completed(job_id: str = "job-1") -> Outcome:
        """The outcome of an image job with one image."""
        key = f"workspace-temp/{USER}/{job_id}/0.png"
        image = Asset(type="image", key=key, thumbnail_key=key.replace(".png", ".thumb.webp"))
        return Outcome(status="completed", assets=(image,), metadata={"generation_time": 1.5})

    @staticmethod
    def failed() -> Outcome:
        """The outcome of a job whose worker was lost."""
        return Outcome.failure(WorkerLost("gone"))

    def submit(self, **fields: Any) -> dict[str, Any]:
        """Submit a small image job over HTTP; return the response document."""
        answer = self.client.post("/jobs", json=self.payload(**fields))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def claim(self, job_id: str) -> Claim:
        """Claim the first run of a job as a worker does."""
        claim = self.ledger.claim(job_id, 1, worker_id="sdxl@host-cpu", lease_s=30, token=f"t-{job_id}")
        assert claim is not None
        return claim

    def end(self, job_id: str, outcome: Outcome) -> None:
        """Claim a job and commit its outcome."""
        claim = self.claim(job_id)
        assert self.ledger.end(claim, outcome=outcome, worker_id="sdxl@host-cpu")

    def register_worker(self, **fields: Any) -> None:
        """Send one heartbeat of an idle SDXL worker; `fields` replace its own."""
        worker: dict[str, Any] = {
            "id": "sdxl@host-cpu",
            "family": "sdxl",
            "queue": "sdxl_queue",
            "host": "host",
            "pid": 7,
            "gpu": None,
            "state": "idle",
            "models": ("sdxl",),
            "version": "1",
            "started_at": time.time(),
            "seen_at": time.time(),
            "detail": {"info": {"sdxl": {"name": "tiny-sdxl", "device": "cpu"}}},
        }
        self.ledger.heartbeat(Worker(**worker | fields))


class FakeChatWorker:
    """A thread that runs every chat job of a ledger: it streams `text` word by word, then ends the job.

    With `endless` it runs a job until it is cancelled; with an `error` the job fails after its text. `finish`
    is the `finish_reason`, `metadata` more fields of the outcome's metadata.
    """

    def __init__(
        self,
        ledger: Ledger,
        text: str = "A tide is moving water.",
        *,
        endless: bool = False,
        error: OurvidzError | None = None,
        finish: str = "stop",
        **metadata: Any,
    ) -> None:
        self.claims: list[Claim] = []
        self.cancelled = threading.Event()
        """Set when a job has ended because it was cancelled."""
        self.text_streamed = threading.Event()
        """Set when the whole text of a job is in its stream."""
        self._finish = threading.Event()
        self._ledger = ledger
        self._text = text
        self._endless = endless
        self._error = error
        self._metadata = {
            "generation_time": 0.25,
            "tokens_generated": 5,
            "prompt_tokens": 7,
            "finish_reason": finish,
            "model_name": "tiny-qwen",
            "inference_engine": "pure",
            "active_model_type": "instruct",
            **metadata,
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def finish(self) -> None:
        """Complete an endless job."""
        self._finish.set()

    @property
    def job(self) -> Any:
        """The job of the last claim."""
        return self.claims[-1].job

    def _work(self) -> None:
        while not self._stopping.wait(0.005):
            for record in self._ledger.queued("chat_queue"):
                claim = self._ledger.claim(
                    record.job_id, record.run, worker_id="chat@host-cpu", lease_s=30, token=record.job_id
                )
                if claim is not None:
                    self.claims.append(claim)
                    self._end(claim, self._run(claim))

    def _run(self, claim: Claim) -> Outcome:
        words = re.findall(r"\S+\s*", self._text)
        verdicts = [self._ledger.step(claim, items=[("token", {"text": word})]) for word in words]
        self.text_streamed.set()
        while self._endless and Verdict.CANCEL not in verdicts and not self._stopping.wait(0.01):
            if self._finish.is_set():
                break
            verdicts.append(self._ledger.step(claim))
        if Verdict.CANCEL in verdicts:
            return Outcome.failure(Cancelled("the job was cancelled"))
        if self._error is not None:
            return Outcome.failure(self._error)
        text = Asset(type="text", metadata={"text": self._text, "format": "text", "asset_index": 0})
        enhanced = self._text if claim.job.type == "chat_enhance" else None
        return Outcome(status="completed", assets=(text,), metadata=self._metadata, enhanced_prompt=enhanced)

    def _end(self, claim: Claim, outcome: Outcome) -> None:
        self._ledger.end(claim, outcome=outcome)
        if outcome.status == "cancelled":
            self.cancelled.set()


_unused: defaultdict[tuple[str, ...], list[FastAPI]] = defaultdict(list)
"""Applications that no shim uses, by the settings that they were made with."""


@contextmanager
def application(services: control.ControlPlane, variables: dict[str, Any]) -> Iterator[FastAPI]:
    """An application that uses `services`, whose settings were read from `variables`.

    It is used again for other services with equal settings: an application analyses its routes at its first
    request, which takes longer than the rest of most tests.
    """
    unused = _unused[tuple(sorted(f"{name}={value}" for name, value in variables.items()))]
    with control.using(services):
        app = unused.pop() if unused else create_app()
        app.state.started_at = time.monotonic()
        yield app
    unused.append(app)


OpenShim = Callable[..., Shim]
StartChatWorker = Callable[..., FakeChatWorker]


@pytest.fixture
def open_shim(tmp_path: Path, make_ledger: Callable[..., Ledger]) -> Iterator[OpenShim]:
    """Start a shim: `open_shim(ledger=…, store=…, base_url=…, VARIABLE=value)`."""
    with ExitStack() as resources:

        def start(
            *,
            ledger: Ledger | None = None,
            store: Callable[[Settings], Store] | None = None,
            base_url: str = LOCAL,
            **variables: Any,
        ) -> Shim:
            settings = load_settings(
                _env_file=None,
                **{
                    "OURVIDZ_STATE_DIR": tmp_path / "state",
                    "OURVIDZ_PUBLIC_URL": LOCAL,
                    "OURVIDZ_CALLBACK_URL": f"{LOCAL}/functions/v1/job-callback",
                    # Its files and syncs would take more time than most tests.
                    "OURVIDZ_AUDIT_LOG": False,
                    **variables,
                },
            )
            services = control.build(
                settings,
                ledger=ledger or make_ledger(),
                store=store(settings) if store else None,
            )
            if ledger is None:
                resources.enter_context(publishing_to("memory://"))
            app = resources.enter_context(application(services, variables))
            return Shim(resources.enter_context(TestClient(app, base_url=base_url)), services)

        yield start


@pytest.fixture
def shim(open_shim: OpenShim) -> Shim:
    """A shim without keys in embedded mode, with an in-process broker."""
    return open_shim(OURVIDZ_EMBEDDED=True)


@pytest.fixture
def shim_with_broker(open_shim: OpenShim, redis_url: str) -> Iterator[Shim]:
    """A shim whose broker is the Redis server `redis_url`."""
    ledger = Ledger(redis_url, prefix="ourvidz:")
    with publishing_to(redis_url):
        yield open_shim(ledger=ledger, OURVIDZ_REDIS_URL=redis_url)
    ledger.close()


@pytest.fixture
def chat_worker() -> Iterator[StartChatWorker]:
    """Start a fake chat worker until the test ends: `chat_worker(ledger, text, …)`."""
    with ExitStack() as resources:
        yield lambda *args, **options: resources.enter_context(FakeChatWorker(*args, **options))


@pytest.fixture
def serve() -> Iterator[Callable[[Shim], str]]:
    """Serve a shim on a port, where clients can disconnect: `serve(shim)` returns its URL."""
    with ExitStack() as resources:

        def listen(shim: Shim) -> str:
            config = uvicorn.Config(
                shim.client.app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=5
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            resources.callback(thread.join)
            resources.callback(setattr, server, "should_exit", True)
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

        yield listen


START_SHIM = "import json, sys; from ourvidz.settings import settings; from ourvidz.web.serve import run; " \
    "run(settings(), json.loads(sys.argv[1]))"  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str, process: subprocess.Popen[str]) -> requests.Response:
    """Read a path, as soon as the process listens."""
    until = time.monotonic() + 30
    while True:
        try:
            return requests.get(f"http://127.0.0.1:{port}{path}", timeout=5)
        except (requests.ConnectionError, requests.Timeout):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start shim processes; settings by variable name. `open_files`: their limit of descriptors."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        *, fds: tuple[int, ...] = (), open_files: int | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OURVIDZ_")}
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [
                *(("prlimit", f"--nofile={open_files}") if open_files else ()),
                *(sys.executable, "-c", START_SHIM, json.dumps(fds)),
            ],
            env={
                **kept, "PYTHONPATH": root, "OURVIDZ_REDIS_URL": redis_url,
                "OURVIDZ_STATE_DIR": str(tmp_path), **variables,
            },
            cwd=tmp_path,
            pass_fds=fds,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
