"""`ourvidz rehearse` against a real shim over HTTP. A thread does what workers and `io` would do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result
from PIL import Image

from campaigns.s3_server import S3Server
from ourvidz.app import app as celery
from ourvidz.auditing.checkpoints import FOLDER as AUDIT
from ourvidz.cli import rehearsal
from ourvidz.cli.main import cli
from ourvidz.errors import OurvidzError, StorageError
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.media.images import encode_png
from ourvidz.media.thumbnails import thumbnail
from ourvidz.media.video import encode_mp4
from ourvidz.records.record import Claim, Record
from ourvidz.settings import load_settings
from ourvidz.web.main import create_app
from ourvidz.wiring import control

pytestmark = pytest.mark.system

KEY = "a-key-for-the-rehearsal"
SIZE = (64, 48)
FILES = {
    "image": ("png", encode_png(Image.new("RGB", SIZE, "green"))),
    "video": ("mp4", encode_mp4([Image.new("RGB", SIZE, "green")], fps=16)),
}
THUMBNAIL = thumbnail(Image.new("RGB", SIZE, "green"))


class FakeWorkers(threading.Thread):
    """Claims queued jobs of `types`, stores a file for each, and lets a receiver answer its callbacks.

    `receiver` is the HTTP status of the receiver, 0 for one that does not answer. `error` ends each job.
    `alter` changes the metadata of a completed job. With `damaged` other bytes are stored than reported.
    """

    def __init__(
        self,
        app: control.ControlPlane,
        *,
        types: tuple[str, ...] = tuple(CATALOG),
        receiver: int = 200,
        error: OurvidzError | None = None,
        alter: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        damaged: bool = False,
        stores: bool = True,
    ) -> None:
        super().__init__()
        self.payloads: list[dict[str, Any]] = []
        self._app = app
        self._types = types
        self._receiver = receiver
        self._error = error
        self._alter = alter
        self._damaged = damaged
        self._stores = stores
        self._stopped = threading.Event()

    def __enter__(self) -> FakeWorkers:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Work until the context ends."""
        while not self._stopped.wait(0.01):
            for record in self._app.ledger.page(status="queued").records:
                if record.type in self._types:
                    self._work(record)

    def _work(self, record: Record) -> None:
        ledger = self._app.ledger
        claim = ledger.claim(
            record.job_id, record.run, worker_id="sdxl@test", lease_s=60, token=record.job_id
        )
        if claim is None:
            return
        self.payloads.append({"id": record.job_id, "user_id": record.user_id})
        outcome = Outcome.failure(self._error) if self._error else self._outcome(claim)
        assert ledger.end(claim, outcome=outcome)
        while self._receiver and (event := ledger.lease_event(record.job_id, lease_s=9, token="io")):
            if self._receiver < 300:
                ledger.mark_delivered(event, status=self._receiver)
            else:
                ledger.dead_letter(event, status=self._receiver, error=f"HTTP {self._receiver}")

    def _outcome(self, claim: Claim) -> Outcome:
        row = CATALOG[claim.type]
        metadata: dict[str, Any] = {"receipt": {"device": "CPU"}, "enhancement_strategy": "qwen"}
        if getattr(claim.job, "reference", None) or "reference" in claim.job_id:
            metadata["reference_backend"] = "img2img"
        metadata = self._alter(metadata)
        if not row.stores_assets:
            content = {"text": "A lake."} if row.output == "text" else {"result": {}}
            return Outcome(
                status="completed",
                assets=(Asset(type=row.content_type, metadata=content),),
                metadata=metadata,
            )
        suffix, data = FILES[row.content_type]
        key = f"workspace-temp/{claim.user_id}/{claim.job_id}/0.{suffix}"
        small = f"workspace-temp/{claim.user_id}/{claim.job_id}/0.thumb.webp"
        if self._stores:
            self._app.store.put(key, data[:-1] if self._damaged else data, content_type="image/png")
            self._app.store.put(small, THUMBNAIL, content_type="image/webp")
        described = {"width": SIZE[0], "height": SIZE[1], "file_size_bytes": len(data)}
        asset = Asset(type=row.content_type, key=key, thumbnail_key=small, metadata=described)
        return Outcome(status="completed", assets=(asset,), metadata=metadata)


class Installation:
    """A shim on a port of this machine, with files in a directory."""

    def __init__(self, url: str, app: control.ControlPlane) -> None:
        self.url = url
        self.app = app
        self.folder = app.settings.storage_dir

    def rehearse(self, *arguments: str, key: str = KEY) -> Result:
        """Run the command to its end."""
        return CliRunner().invoke(cli, ["rehearse", *arguments, "--url", self.url, "--api-key", key])

    def report(self, *arguments: str) -> dict[str, Any]:
        """Run the command with `--json`; the steps by name, and the exit status."""
        result = self.rehearse(*arguments, "--json")
        document = json.loads(result.stdout)
        assert result.exit_code == (0 if document["ok"] else 1)
        return {step["name"]: step for step in document["steps"]} | {"exit": result.exit_code}

    def files(self) -> list[str]:
        """Everything that is stored, but for the audit log of the shim."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return [path.name for path in paths if not path.is_relative_to(self.folder / AUDIT)]


@contextmanager
def shim_with(app_of: Callable[[str], control.ControlPlane]) -> Iterator[Installation]:
    """Run a shim; `app_of` builds its services from its URL. Celery publishes to a broker in the memory of
    this process."""
    before = celery.conf.broker_url
    celery.conf.broker_url = "memory://"
    celery._after_fork()
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        app = app_of(url)
        config = uvicorn.Config(create_app(app), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield Installation(url, app)
        server.should_exit = True
        thread.join()
    celery.conf.broker_url = before
    celery._after_fork()


@pytest.fixture
def open_installation(
    tmp_path: Path, make_ledger: Callable[..., Any]
) -> Callable[..., AbstractContextManager[Installation]]:
    """Run a shim with keys and these variables: `with open_installation(NAME=value) as installation`."""

    def start(**variables: str) -> AbstractContextManager[Installation]:
        def build(url: str) -> control.ControlPlane:
            settings = load_settings(
                **{
                    "_env_file": None,
                    "OURVIDZ_STATE_DIR": tmp_path,
                    "OURVIDZ_STORAGE_DIR": tmp_path / "assets",
                    "OURVIDZ_API_KEYS": f"backend:{KEY}:jobs,chat:another:chat",
                    "OURVIDZ_PUBLIC_URL": url,
                }
                | variables
            )
            return control.build(settings, ledger=make_ledger())

        return shim_with(build)

    return start


@pytest.fixture
def installation(
    open_installation: Callable[..., AbstractContextManager[Installation]],
) -> Iterator[Installation]:
    """A shim with keys and files in a directory."""
    with open_installation() as installation:
        yield installation


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake workers need no time."""
    monkeypatch.setattr(rehearsal, "POLL_S", 0.02)


def test_all_types_pass_and_nothing_is_left(installation: Installation) -> None:
    """The bare command, as an operator types it: a line for each step, and an installation as before."""
    with FakeWorkers(installation.app) as workers:
        result = installation.rehearse()
    lines = [line.split() for line in result.stdout.splitlines() if not line.startswith(" ")]
    ran = {line[0]: line[1] for line in lines[1:]}
    # The tests start no keeper and no heartbeats, of which the shim reports degradations.
    assert ran.pop("health") == "failed"
    assert ran == dict.fromkeys(["shim", *CATALOG, "reference", "deletion"], "ok")
    assert "with the key of the shim" in " ".join(result.stdout.split())
    assert {payload["user_id"] for payload in workers.payloads if payload["user_id"]} == {"rehearsal"}
    assert installation.app.ledger.page().records == []
    assert installation.files() == []


def test_files_are_read_at_signed_urls_without_a_key(
    open_installation: Callable[..., AbstractContextManager[Installation]], s3_server: S3Server
) -> None:
    """As a browser reads them. A signature is a secret: no table and no error shows it."""
    with open_installation(**s3_server.environment("rehearsal")) as installation:
        installation.app.store.create_buckets()
        with FakeWorkers(installation.app):
            steps = installation.report("--types", "sdxl_image_fast,video_fast")
            stored = s3_server.stored_keys("rehearsal")
            assert [key for key in stored if not key.startswith(f"{AUDIT}/")] == []
            for name in ("sdxl_image_fast", "video_fast", "reference"):
                assert "without a key" in steps[name]["reason"], steps[name]


def test_a_signed_url_that_is_refused_is_a_failure(
    open_installation: Callable[..., AbstractContextManager[Installation]],
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A browser has no key that would open it. The path looks like one of the shim."""
    with open_installation(**s3_server.environment("assets")) as installation:
        store = installation.app.store
        store.create_buckets()
        urls = store.urls

        def damaged(keys: Sequence[str], *, lifetime_s: float) -> dict[str, str]:
            """As a result has them: the shim signs the one of a redirect alone."""
            signed = urls(keys, lifetime_s=lifetime_s)
            return {key: f"{url[:-4]}0000" if len(keys) > 1 else url for key, url in signed.items()}

        monkeypatch.setattr(store, "urls", damaged)
        with FakeWorkers(installation.app):
            steps = installation.report("--types", "sdxl_image_fast")
    assert f"{s3_server.url}/assets/workspace-temp/" in steps["sdxl_image_fast"]["reason"]
    assert "HTTP 403 (SignatureDoesNotMatch)" in steps["sdxl_image_fast"]["reason"]


def test_the_key_is_sent_to_no_other_host(
    open_installation: Callable[..., AbstractContextManager[Installation]],
) -> None:
    """Another host can answer as a shim does, to be sent the key."""
    received: list[str | None] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers["Authorization"])
            self.send_response(401)
            self.send_header("Content-Type", "application/problem+json")
            self.end_headers()
            self.wfile.write(b'{"code": "UNAUTHORIZED"}')

        def log_message(self, format: str, *args: object) -> None:
            """Standard error stays quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{stranger.server_port}"
        with open_installation(OURVIDZ_PUBLIC_URL=url) as installation, FakeWorkers(installation.app):
            steps = installation.report("--types", "sdxl_image_fast")
        stranger.shutdown()
    assert "answers HTTP 401 (UNAUTHORIZED)" in steps["sdxl_image_fast"]["reason"]
    assert "--url" in steps["sdxl_image_fast"]["fix"]
    assert received
    assert set(received) == {None}


def test_a_url_that_nobody_can_reach_is_a_failure(
    open_installation: Callable[..., AbstractContextManager[Installation]], unused_port: int
) -> None:
    """The shim reads its files, and no browser does."""
    wrong = f"http://127.0.0.1:{unused_port}"
    with open_installation(OURVIDZ_PUBLIC_URL=wrong) as installation, FakeWorkers(installation.app):
        steps = installation.report("--types", "sdxl_image_fast")
    assert f"{wrong}/assets/workspace-temp/rehearsal/" in steps["sdxl_image_fast"]["reason"]
    assert "OURVIDZ_PUBLIC_URL" in steps["sdxl_image_fast"]["fix"]
    assert steps["deletion"]["status"] == "ok"


def test_jobs_and_files_can_be_kept(installation: Installation) -> None:
    """To look at them."""
    with FakeWorkers(installation.app):
        steps = installation.report("--types", "sdxl_image_fast", "--keep")
    assert steps["deletion"]["status"] == "skipped"
    assert len(installation.app.ledger.page(user_id="rehearsal").records) == 2
    assert {"0.png", "0.thumb.webp"} < set(installation.files())


def test_only_the_named_types_run(installation: Installation) -> None:
    """Aliases are names too; texts need no reference. An unknown name is an error of use."""
    with FakeWorkers(installation.app):
        steps = installation.report("--types", "chat,admin_utilities")
    assert {name for name, step in steps.items() if name != "exit" and step["status"] == "ok"} == {
        "shim", "chat_conversation", "admin_utilities", "deletion",
    }  # fmt: skip
    assert steps["reference"]["status"] == "skipped"
    for types, message in (("sdxl_image", "'sdxl_image' is no job type"), (" ,", "names no type")):
        result = installation.rehearse("--types", types)
        assert (result.exit_code, message in result.output) == (2, True)


def test_a_queue_without_a_worker_is_waited_for_once(installation: Installation) -> None:
    """Eight types of one queue that nobody serves must not take eight time limits. What waits is deleted."""
    with FakeWorkers(installation.app, types=("sdxl_image_fast",)):
        steps = installation.report("--types", "sdxl_image_fast,video_fast,video_high", "--timeout", "1")
    assert steps["sdxl_image_fast"]["status"] == "ok"
    assert "no job of wan_queue was started within 1 s" in steps["video_fast"]["reason"]
    assert steps["video_high"]["reason"].startswith("not tried")
    assert "start a worker of this queue" in steps["video_high"]["fix"]
    assert steps["deletion"]["status"] == "ok"
    assert installation.app.ledger.page().records == []


@pytest.mark.parametrize(
    ("workers", "reason", "fix"),
    [
        ({"receiver": 404}, "not accepted after 1 delivery: HTTP 404", "begin with rehearsal-"),
        ({"receiver": 401}, "not accepted after 1 delivery: HTTP 401", "the same secrets"),
        ({"receiver": 0}, "its callback was not sent", "ourvidz worker io"),
        ({"error": StorageError("the bucket is gone")}, "STORAGE_ERROR: the bucket is gone", "doctor"),
        ({"damaged": True}, "bytes instead of", "storage"),
        ({"stores": False}, "cannot be read through the shim", "the same storage"),
        ({"alter": lambda _: {}}, "no receipt", "release"),
        (
            {"alter": lambda m: m | {"enhancement_strategy": "fallback", "enhancement_reason": "no worker"}},
            "its prompt was not enhanced: no worker",
            "chat worker",
        ),
    ],
    ids=["unknown job", "secrets", "io", "failed", "damaged", "not stored", "receipt", "enhancement"],
)
def test_a_failure_is_named_with_its_fix(
    installation: Installation,
    workers: dict[str, Any],
    reason: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rehearsal that only says no is of no use. Failed ones are deleted too."""
    monkeypatch.setattr(rehearsal, "CALLBACK_S", 0.1)
    name = "image7b_fast_enhanced"
    with FakeWorkers(installation.app, **workers):
        steps = installation.report("--types", name)
    assert steps["exit"] == 1
    assert steps[name]["status"] == "failed"
    assert reason in steps[name]["reason"]
    assert fix in steps[name]["fix"]
    assert steps["deletion"]["status"] == "ok"
    assert installation.app.ledger.page().records == []
    assert installation.files() == []


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_rehearsal_leaves_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    """Whoever does not want to wait any more: what was submitted is cancelled and deleted."""

    def interrupt(*_: object) -> None:
        raise end

    monkeypatch.setattr(rehearsal.Rehearsal, "_wait", interrupt)
    result = installation.rehearse("--types", "video_fast")
    assert result.exit_code != 0
    assert installation.app.ledger.page().records == []


def test_a_late_job_is_cancelled_before_the_next_one(installation: Installation) -> None:
    """It would keep its worker from the others."""
    with FakeWorkers(installation.app, types=()):
        steps = installation.report("--types", "admin_utilities", "--timeout", "1", "--keep")
    assert steps["admin_utilities"]["status"] == "failed"
    (record,) = installation.app.ledger.page().records
    assert record.status == "cancelled"


def test_a_reference_that_is_not_used_is_a_failure(installation: Installation) -> None:
    """The job completes with its prompt alone, which its caller would hardly notice."""
    lost = {"reference_fallback": True, "reference_error_reason": "it could not be read"}
    with FakeWorkers(installation.app, alter=lambda metadata: metadata | lost):
        steps = installation.report("--types", "sdxl_image_fast")
    assert steps["sdxl_image_fast"]["status"] == "ok"
    assert "its reference was not used: it could not be read" in steps["reference"]["reason"]


@pytest.mark.parametrize(("key", "fix"), [("wrong", "OURVIDZ_API_KEY"), ("another", "the scope jobs")])
def test_a_key_that_is_refused_ends_the_rehearsal(installation: Installation, key: str, fix: str) -> None:
    """Fourteen failures would say no more than one."""
    result = installation.rehearse(key=key)
    assert result.exit_code == 1
    assert fix in " ".join(result.stdout.split())
    assert result.stdout.count("skipped") == len(CATALOG) + 2
    assert installation.app.ledger.page().records == []


def test_a_shim_that_does_not_answer_is_named(unused_port: int) -> None:
    """One line, and no traceback."""
    result = CliRunner().invoke(cli, ["rehearse", "--url", f"http://127.0.0.1:{unused_port}"])
    assert result.exit_code == 1
    assert "nothing answers at" in result.stdout
