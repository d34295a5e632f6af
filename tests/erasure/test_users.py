"""Erasure of a user: a planted marker is found nowhere afterwards, neither in Redis nor in any file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from ourvidz import dispatch
from ourvidz.callbacks.inbox import FILE_NAME, Inbox
from ourvidz.embedded_redis import PrivateServer, find_server
from ourvidz.erasure import users
from ourvidz.erasure.store import ErasureStore
from ourvidz.errors import Cancelled, StorageError
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim
from ourvidz.settings import load_settings
from ourvidz.web.main import create_app
from ourvidz.wiring import control
from tests.factories import STAND_IN_GATE, publishing_to

MARKER = "heliotrope-lighthouse"
ANN, BOB = "ann", "bob"


class Stack:
    """An installation in embedded mode, whose server writes its file into the state directory."""

    def __init__(self, app: control.ControlPlane, url: str, state: Path) -> None:
        self.app, self.state = app, state
        self.client = redis.Redis.from_url(url)
        self.erasures = ErasureStore(app.ledger.connection)

    def submit(self, job_id: str, user: str = ANN, **fields: Any) -> None:
        """Submit a picture whose prompt and metadata have the marker."""
        payload = {"id": job_id, "type": "sdxl_image_fast", "prompt": f"a {MARKER} {user}", "user_id": user}
        dispatch.submit({**payload, "metadata": {"note": f"{MARKER} {user}"}, **fields})

    def claim(self, job_id: str) -> Claim:
        """Claim a job as a worker does."""
        (claim,) = [self.app.ledger.claim(job_id, 1, worker_id="w", lease_s=60, token=f"t-{job_id}")]
        assert claim is not None
        return claim

    def complete(self, job_id: str, user: str = ANN) -> None:
        """Run a job to its end: with a file, a checkpoint, GPU usage, and a callback in the inbox."""
        key = f"workspace-temp/{user}/{job_id}/0.png"
        self.app.store.put(key, f"{MARKER} {user}".encode(), content_type="image/png")
        checkpoint = f"checkpoints/jobs/{job_id}/1.t/denoising.safetensors"
        self.app.store.put(checkpoint, f"{MARKER} {user}".encode(), content_type="application/octet-stream")
        outcome = Outcome(
            status="completed",
            assets=(Asset(type="image", key=key),),
            metadata={"enhanced_prompt": f"{MARKER} {user}", "gpu_seconds": {"total": 2.0}},
        )
        assert self.app.ledger.end(self.claim(job_id), outcome=outcome)
        assert self.app.inbox is not None
        self.app.inbox.add(
            {"job_id": job_id, "metadata": {"prompt": f"{MARKER} {user}"}, "assets": []},
            {},
            received_at="2026-01-01T00:00:00+00:00",
            verified=True,
        )

    def found(self, text: str = f"{MARKER} {ANN}") -> set[str]:
        """Where a text is: keys of the server, and files of the state directory."""
        needle = text.encode()
        keys = {str(key) for key in self.client.scan_iter() if needle in key + _dump(self.client, key)}
        files = {
            str(path.relative_to(self.state))
            for path in self.state.rglob("*")
            if path.is_file() and needle in path.read_bytes()
        }
        return keys | files


def _dump(client: redis.Redis, key: bytes) -> bytes:
    """Everything that a key holds. `DUMP` may compress, so each type is read in its own way."""
    kind = client.type(key).decode()
    read = {
        "string": lambda: client.get(key),
        "hash": lambda: client.hgetall(key),
        "list": lambda: client.lrange(key, 0, -1),
        "set": lambda: client.smembers(key),
        "zset": lambda: client.zrange(key, 0, -1),
        "stream": lambda: client.xrange(key),
    }
    return repr(read[kind]()).encode() if kind in read else b""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A running installation."""
    state = tmp_path / "state"
    (state / "redis").mkdir(parents=True)
    options = ("--appendonly", "yes", "--rdbcompression", "no")
    server = PrivateServer(*options, binary=find_server(None), folder=state / "redis")
    with ExitStack() as resources:
        resources.callback(server.kill)
        server.start()
        settings = load_settings(
            _env_file=None,
            OURVIDZ_STATE_DIR=state,
            OURVIDZ_REDIS_URL=server.url,
            OURVIDZ_EMBEDDED=True,
            OURVIDZ_CALLBACK_URL="http://127.0.0.1:9/inbox",
        )
        ledger = Ledger(server.url)
        resources.callback(ledger.close)
        app = control.build(settings, ledger=ledger)
        object.__setattr__(app, "gate", STAND_IN_GATE)
        resources.enter_context(publishing_to(server.url))
        resources.enter_context(control.using(app))
        stack = Stack(app, server.url, state)
        resources.callback(stack.client.close)
        yield stack


def test_a_deleted_job_leaves_its_texts_in_no_key_and_no_file_but_the_log_of_the_server(
    stack: Stack,
) -> None:
    """Record, document, stream, events, files, checkpoints, callbacks in the inbox, and the memo of the
    deletion itself."""
    stack.submit("job-a")
    stack.complete("job-a")
    assert {"inbox.sqlite3"} <= {name.removesuffix("-wal") for name in stack.found()}
    dispatch.delete("job-a", force=True)
    assert {name for name in stack.found() if not name.startswith("redis/")} == set()


def test_nothing_of_an_erased_user_is_found_anywhere(stack: Stack) -> None:
    """Jobs that ended, wait, or have no record any more; uploads; usage; the file of the server. What belongs
    to another user stays."""
    for user in (ANN, BOB):
        stack.submit(f"{user}-1", user)
        stack.complete(f"{user}-1", user)
        stack.submit(f"{user}-2", user)
        lost = f"workspace-temp/{user}/purged/0.png"
        stack.app.store.put(lost, f"{MARKER} {user}".encode(), content_type="image/png")
        upload = f"reference_images/{user}/uploads/1-{'0' * 32}.png"
        stack.app.store.put(upload, f"{MARKER} {user}".encode(), content_type="image/png")
        stack.app.store.put(f"checkpoints/uploads/1/{user}/x", b"upload", content_type="text/plain")
        day = stack.app.ledger.connection.prefix + f"gpu_usage:{int(time.time() // 86400)}"
        stack.client.hset(day, f"{user} sdxl_image_fast ms", 2000)
    before = stack.found(f"{MARKER} {BOB}")
    with TestClient(create_app(stack.app), base_url="http://127.0.0.1:7860") as client:
        answer = client.delete(f"/users/{ANN}/data")
    report = answer.json()
    assert (answer.status_code, report["complete"], report["rewritten"]) == (200, True, True)
    counts = {name: report[name] for name in ("jobs", "files", "callbacks", "running", "unreadable")}
    assert counts == {"jobs": 2, "files": 2, "callbacks": 1, "running": 0, "unreadable": 0}
    assert report["usage_rows"] >= 1
    assert stack.client.hget(day, "- sdxl_image_fast ms") == b"2000"
    _wait_until_removed(stack)
    assert stack.found() == set()
    assert stack.app.store.folders("checkpoints/uploads/1") == [BOB]
    left = stack.found(f"{MARKER} {BOB}")
    assert _stored(left) == _stored(before)
    assert stack.app.ledger.get("bob-2").status == "queued"


def _stored(names: set[str]) -> set[str]:
    """Without the server's file, and without the log of the inbox, which is part of it."""
    return {name.removesuffix("-wal") for name in names if not name.startswith("redis/")}


def _wait_until_removed(stack: Stack) -> None:
    """The server deletes the file of before in a thread, after it has reported the end of its writing."""
    deadline = time.monotonic() + 20
    while any(name.startswith("redis/") for name in stack.found()) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_running_job_is_cancelled_and_a_keeper_ends_the_erasure(stack: Stack) -> None:
    """Until its worker has stopped the job and its files stay, and the answer says so."""
    stack.submit("job-a")
    claim = stack.claim("job-a")
    report = users.erase_user(ANN, wait_s=0)
    assert (report.running, report.complete, report.rewritten) == (1, False, False)
    assert stack.app.ledger.get("job-a").cancel_requested
    assert stack.erasures.pending() == [ANN]
    assert users.resume_erasures() == 0
    assert stack.app.ledger.end(claim, outcome=Outcome.failure(Cancelled("it was cancelled")))
    assert users.resume_erasures() == 1
    _wait_until_removed(stack)
    assert stack.found() == set()
    assert (stack.erasures.pending(), stack.erasures.rewrite_due) == ([], False)


def test_an_erasure_that_dies_anywhere_is_ended_by_a_keeper(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage fails in the middle; later the process dies before the server has written its file."""
    stack.submit("job-a")
    stack.complete("job-a")
    with monkeypatch.context() as patch:

        def fail(_folder: str) -> None:
            raise StorageError("the disk is gone")

        patch.setattr(stack.app.store, "delete_folder", fail)
        with pytest.raises(StorageError):
            users.erase_user(ANN)
        assert users.resume_erasures() == 0
    with monkeypatch.context() as patch:
        patch.setattr(ErasureStore, "rewrite", lambda *_args, **_options: False)
        assert users.resume_erasures() == 1
    assert stack.erasures.rewrite_due
    assert users.resume_erasures() == 0
    _wait_until_removed(stack)
    assert stack.found() == set()
    assert not stack.erasures.rewrite_due


def test_refused_entries_of_a_list_go_with_their_user(stack: Stack) -> None:
    """They hold what their caller wrote."""
    for user in (ANN, BOB):
        entry = json.dumps({"user_id": user, "prompt": f"{MARKER} {user}"})
        report = {
            "at": 1.0,
            "list": "raw",
            "code": "INVALID_PARAMS",
            "reason": "it has no type",
            "field": "type",
        }
        stack.client.rpush("ourvidz:importing:raw", entry)
        stack.app.ledger.refuse_import("raw", entry, report | {"entry": entry}, None)
    assert users.erase_user(ANN).refused_imports == 1
    assert {json.loads(each.entry)["user_id"] for each in stack.app.ledger.refused_imports()} == {BOB}


def test_callbacks_of_jobs_that_are_purged_are_found_by_user_and_by_file(tmp_path: Path) -> None:
    """The inbox outlives records. A path in which the name of the user is something else is no reason."""
    inbox = Inbox(tmp_path / FILE_NAME)
    payloads: list[dict[str, Any]] = [
        {"job_id": "1", "metadata": {"user_id": ANN}},
        {"job_id": "2", "assets": [{"url": f"https://host/assets/workspace-temp/{ANN}/2/0.png"}]},
        {"job_id": "3", "assets": [f"workspace-temp/{ANN}/3/0.png"]},
        {"job_id": "4", "assets": [{"url": f"https://host/{ANN}/workspace-temp/{BOB}/4/0.png"}]},
        {"job_id": "5", "metadata": None, "assets": "odd"},
    ]
    for payload in payloads:
        inbox.add(payload, {}, received_at="2026-01-01T00:00:00+00:00", verified=False)
    assert inbox.delete_user(ANN) == 3
    assert [row["payload"]["job_id"] for row in inbox.last(limit=9)] == ["4", "5"]
    inbox.close()
