"""A shim in this process: with an in-process broker, or with queues on the Redis server too."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import uvicorn
from starlette.testclient import TestClient

from ourvidz.errors import Cancelled, OurvidzError, WorkerLost
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.record import Claim, Verdict, Worker
from ourvidz.ledger.redis_store import RedisLedger
from ourvidz.ledger.store import Ledger
from ourvidz.settings import load_settings
from ourvidz.storage.local import LocalStore
from ourvidz.web.main import create_app
from ourvidz.wiring import control
from tests.factories import publishing_to

LOCAL = "http://127.0.0.1:7860"
USER = "3f0c2a54-6f0a-4d0e-9a3b-0d3a4c1f7b11"


class Shim:
    """One running app with its ledger and store, and what workers would do to its jobs."""

    def __init__(self, client: TestClient, at: control.Control) -> None:
        self.client = client
        self.ledger: Ledger = at.ledger
        self.store = at.store
        self.settings = at.settings

    @staticmethod
    def payload(**fields: Any) -> dict[str, Any]:
        """A small image job; `fields` change it."""
        job = {"id": "job-1", "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": USER}
        return {**job, **fields}

    @staticmethod
    def completed(job_id: str = "job-1") -> Outcome:
        """The ending of an image job."""
        key = f"workspace-temp/{USER}/{job_id}/0.png"
        made = Asset(type="image", key=key, thumbnail_key=key.replace(".png", ".thumb.webp"))
        return Outcome(status="completed", assets=(made,), metadata={"generation_time": 1.5})

    @staticmethod
    def failed() -> Outcome:
        """The ending of a job whose worker was lost."""
        return Outcome.failure(WorkerLost("gone"))

    def submit(self, **fields: Any) -> dict[str, Any]:
        """Submit a small image job over HTTP."""
        answer = self.client.post("/jobs", json=self.payload(**fields))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def claim(self, job_id: str) -> Claim:
        """Take a job as a worker would."""
        found = self.ledger.claim(job_id, 1, worker_id="sdxl@host-cpu", lease_s=30, token=f"t-{job_id}")
        assert found is not None
        return found

    def end(self, job_id: str, outcome: Outcome) -> None:
        """Take a job and commit how it ended."""
        claim = self.claim(job_id)
        assert self.ledger.end(job_id, run=1, fence=claim.fence, outcome=outcome, worker_id="sdxl@host-cpu")

    def appear(self, **fields: Any) -> None:
        """Let a worker beat once."""
        said: dict[str, Any] = {
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
        self.ledger.beat(Worker(**said | fields))


class ChatWorker:
    """A thread that plays the chat worker with the ledger's real verbs: it says `text` word by word, then
    ends the job. An `endless` one goes on until it is told to stop; one with a `fault` fails."""

    def __init__(
        self,
        ledger: Ledger,
        text: str = "A tide is moving water.",
        *,
        endless: bool = False,
        fault: OurvidzError | None = None,
        finish: str = "stop",
        **metadata: Any,
    ) -> None:
        self.claims: list[Claim] = []
        self.freed = threading.Event()
        """Set when a job was given up because it was cancelled."""
        self.speaking = threading.Event()
        """Set when the words of a job are in its stream."""
        self._ledger = ledger
        self._text = text
        self._endless = endless
        self._fault = fault
        self._told = {
            "generation_time": 0.25,
            "tokens_generated": 5,
            "prompt_tokens": 7,
            "finish_reason": finish,
            "model_name": "tiny-qwen",
            "inference_engine": "pure",
            "active_model_type": "instruct",
            **metadata,
        }
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def job(self) -> Any:
        """The job it was given last."""
        return self.claims[-1].job

    def _work(self) -> None:
        while not self._over.wait(0.005):
            for record in self._ledger.waiting("chat_queue"):
                claim = self._ledger.claim(
                    record.job_id, record.run, worker_id="chat@host-cpu", lease_s=30, token=record.job_id
                )
                if claim is not None:
                    self.claims.append(claim)
                    self._end(claim, self._run(claim))

    def _run(self, claim: Claim) -> Outcome:
        words = re.findall(r"\S+\s*", self._text)
        verdicts = [self._ledger.step(claim, items=[("token", {"text": word})]) for word in words]
        self.speaking.set()
        while self._endless and Verdict.CANCEL not in verdicts and not self._over.wait(0.01):
            verdicts.append(self._ledger.step(claim))
        if Verdict.CANCEL in verdicts:
            return Outcome.failure(Cancelled("the job was cancelled"))
        if self._fault is not None:
            return Outcome.failure(self._fault)
        text = Asset(type="text", metadata={"text": self._text, "format": "text", "asset_index": 0})
        enhanced = self._text if claim.job.type == "chat_enhance" else None
        return Outcome(status="completed", assets=(text,), metadata=self._told, enhanced_prompt=enhanced)

    def _end(self, claim: Claim, outcome: Outcome) -> None:
        self._ledger.end(claim.job_id, run=claim.run, fence=claim.fence, outcome=outcome)
        if outcome.status == "cancelled":
            self.freed.set()


OpenShim = Callable[..., Shim]
ChatWorkers = Callable[..., ChatWorker]


@pytest.fixture
def publish_to() -> Callable[[str], AbstractContextManager[None]]:
    """Let the Celery app publish to another broker for a while."""
    return publishing_to


@pytest.fixture
def open_shim(tmp_path: Path, make_ledger: Callable[..., Ledger]) -> Iterator[OpenShim]:
    """Start shims; `ledger` and settings by variable name."""
    with ExitStack() as until_the_end:

        def start(*, ledger: Ledger | None = None, base_url: str = LOCAL, **variables: Any) -> Shim:
            chosen = load_settings(
                _env_file=None,
                **{
                    "OURVIDZ_STATE_DIR": tmp_path / "state",
                    "OURVIDZ_PUBLIC_URL": LOCAL,
                    "OURVIDZ_CALLBACK_URL": f"{LOCAL}/functions/v1/job-callback",
                    **variables,
                },
            )
            at = control.build(
                chosen,
                ledger=ledger or make_ledger(),
                store=LocalStore(chosen.storage_dir, public_url=chosen.public_url),
            )
            if ledger is None:
                until_the_end.enter_context(publishing_to("memory://"))
            client = until_the_end.enter_context(TestClient(create_app(at), base_url=base_url))
            return Shim(client, at)

        yield start


@pytest.fixture
def shim(open_shim: OpenShim) -> Shim:
    """A shim without keys, as its own backend, with an in-process broker."""
    return open_shim(OURVIDZ_EMBEDDED=True)


@pytest.fixture
def real_shim(open_shim: OpenShim, redis_url: str) -> Iterator[Shim]:
    """A shim on a real server that also holds the broker's queues."""
    ledger = RedisLedger(redis_url, prefix="ourvidz:")
    with publishing_to(redis_url):
        yield open_shim(ledger=ledger, OURVIDZ_REDIS_URL=redis_url)
    ledger.close()


@pytest.fixture
def chat_worker() -> Iterator[ChatWorkers]:
    """`chat_worker(ledger, ...)` plays the chat worker until the test ends."""
    with ExitStack() as until_the_end:
        yield lambda *given, **more: until_the_end.enter_context(ChatWorker(*given, **more))


@pytest.fixture
def serve() -> Iterator[Callable[[Shim], str]]:
    """Let a shim listen on a real port, where clients can hang up; its URL."""
    with ExitStack() as until_the_end:

        def listen(shim: Shim) -> str:
            config = uvicorn.Config(
                shim.client.app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=5
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            until_the_end.callback(thread.join)
            until_the_end.callback(setattr, server, "should_exit", True)
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

        yield listen
