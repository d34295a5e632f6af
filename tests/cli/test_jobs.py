"""`ourvidz jobs` against a real shim over HTTP. The tests do what a worker would do."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result

from ourvidz.app import app as celery
from ourvidz.cli.main import cli
from ourvidz.errors import WorkerLost
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.records.record import Claim
from ourvidz.settings import load_settings
from ourvidz.web.main import create_app
from ourvidz.wiring import control

KEY = "a-key-for-these-tests"
ASSET = "workspace-temp/cli/job-1/0.png"
Run = Callable[..., Result]


@pytest.fixture
def app(tmp_path: Path, make_ledger: Callable[..., Any]) -> Iterator[control.ControlPlane]:
    """The services of a shim. Celery publishes to a broker in the memory of this process."""
    before = celery.conf.broker_url
    celery.conf.broker_url = "memory://"
    celery._after_fork()
    settings = load_settings(
        OURVIDZ_STATE_DIR=tmp_path, OURVIDZ_API_KEYS=f"test:{KEY}:jobs+chat+admin", _env_file=None
    )
    yield control.build(settings, ledger=make_ledger())
    celery.conf.broker_url = before
    celery._after_fork()


@pytest.fixture
def url(app: control.ControlPlane) -> Iterator[str]:
    """The URL of a running shim."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(create_app(app), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def run(url: str) -> Run:
    """Runs `ourvidz jobs …` with the URL and the key of the shim."""

    def invoke(command: str, *arguments: str, key: str = KEY, **more: Any) -> Result:
        argv = ["jobs", command, *arguments, "--url", url, "--api-key", key]
        return CliRunner().invoke(cli, argv, **more)

    return invoke


def claim_job(app: control.ControlPlane, job_id: str = "job-1") -> Claim:
    claim = app.ledger.claim(job_id, 1, worker_id="sdxl@test", lease_s=60, token=job_id)
    assert claim is not None
    return claim


def finish_job(app: control.ControlPlane, outcome: Outcome) -> None:
    claim = claim_job(app)
    app.ledger.step(claim, progress=40.0, items=[("progress", {"progress": 40.0})])
    assert app.ledger.end(claim, outcome=outcome)


COMPLETED = Outcome(
    status="completed", assets=(Asset(type="image", key=ASSET),), metadata={"generation_time": 1.0}
)
FAILED = Outcome.failure(WorkerLost("the worker went away"))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """The path of an image file."""
    from PIL import Image

    file = tmp_path / "pond.png"
    Image.new("RGB", (30, 20), "teal").save(file)
    return str(file)


def test_references_are_uploaded_for_the_user_of_the_job(
    run: Run, app: control.ControlPlane, picture: str
) -> None:
    """The job names their storage paths; each is a file that its worker can read."""
    files = ("--start-reference", picture, "--end-reference", picture)
    submitted = run("submit", "--prompt", "a pond", "--type", "video_fast", "--id", "clip", *files)
    assert submitted.exit_code == 0, submitted.output
    clip: Any = app.ledger.job("clip")
    assert clip.reference_mode == "both"
    assert clip.start_reference != clip.end_reference
    for path in (clip.start_reference, clip.end_reference):
        assert path.startswith("reference_images/cli/uploads/")
        assert app.references.resolve(path, user_id="cli").image.size == (30, 20)


def test_a_payload_of_a_file_gets_its_reference_too(
    run: Run, app: control.ControlPlane, picture: str
) -> None:
    """For the user whom it names, in any of its dialects."""
    payload = {"id": "hill", "type": "sdxl_image_fast", "prompt": "a hill", "metadata": {"user_id": "ada"}}
    submitted = run("submit", "-", "--reference", picture, input=json.dumps(payload))
    assert submitted.exit_code == 0, submitted.output
    job: Any = app.ledger.job("hill")
    assert job.reference.startswith("reference_images/ada/uploads/")


@pytest.mark.parametrize("payload", ['{"id": "a"}', "[]", '{"user_id": "ada", "config": 7}'])
def test_a_payload_that_cannot_have_a_reference_is_refused(run: Run, picture: str, payload: str) -> None:
    """Before anything is uploaded."""
    refused = run("submit", "-", "--reference", picture, input=payload)
    assert refused.exit_code == 2
    assert "user_id" in refused.stderr


def test_a_file_that_is_no_picture_is_one_line(run: Run, tmp_path: Path) -> None:
    """And no job is submitted."""
    (tmp_path / "notes.txt").write_text("hello")
    refused = run("submit", "--prompt", "a pond", "--reference", str(tmp_path / "notes.txt"))
    assert refused.exit_code == 1
    assert "REFERENCE_FRAME_ERROR" in refused.stderr


def test_the_options_become_the_job(run: Run, app: control.ControlPlane) -> None:
    """Every option of `submit` arrives in the stored job."""
    result = run(
        "submit", "--prompt", "a red circle", "--id", "job-1", "--steps", "9", "--size", "96x64",
        "--seed", "5", "--num-images", "3", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["job_id"] == "job-1"
    job = app.ledger.job("job-1")
    assert job is not None
    fields = job.model_dump(include={"prompt", "steps", "width", "height", "seed", "num_images", "user_id"})
    assert fields == {
        "prompt": "a red circle", "steps": 9, "width": 96, "height": 64, "seed": 5, "num_images": 3,
        "user_id": "cli",
    }  # fmt: skip


def test_a_payload_comes_from_a_file_or_from_standard_input(run: Run, tmp_path: Path) -> None:
    """`-` reads standard input, for scripts with pipes."""
    payload = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
    (tmp_path / "job.json").write_text(json.dumps(payload))
    assert run("submit", str(tmp_path / "job.json")).stdout.strip() == "a"
    assert run("submit", "-", input=json.dumps(payload | {"id": "b"})).stdout.strip() == "b"


def test_an_incomplete_command_line_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    """Exit status 2: nothing was sent."""
    (tmp_path / "broken.json").write_text("{")
    for arguments in (["submit"], ["submit", str(tmp_path / "broken.json")],
                  ["submit", "--prompt", "x", "--size", "big"]):  # fmt: skip
        assert run(*arguments).exit_code == 2


def test_a_refused_job_is_one_line_with_its_error_code(run: Run) -> None:
    """The code and the detail of the shim's problem document."""
    result = run("submit", "--prompt", "a hill", "--num-images", "2")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: INVALID_PARAMETERS: ")
    assert "num_images" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_wrong_key_and_an_unreachable_shim_are_one_line_each(run: Run) -> None:
    """Not a traceback."""
    assert "UNAUTHORIZED" in run("list", key="wrong").stderr
    away = CliRunner().invoke(cli, ["jobs", "list", "--url", "http://127.0.0.1:9"])
    assert away.exit_code == 1
    assert "nothing answers at http://127.0.0.1:9" in away.stderr


def test_watch_ends_with_the_job_and_its_assets(run: Run, app: control.ControlPlane) -> None:
    """Exit status 0 when the job completed."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    finish_job(app, COMPLETED)
    result = run("watch", "job-1")
    assert result.exit_code == 0, result.output
    assert "completed" in result.stdout
    assert ASSET in result.stdout


def test_watch_prints_events_while_the_job_runs(run: Run, app: control.ControlPlane) -> None:
    """Progress is printed before the end of the job, and the job itself last."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    worker = threading.Timer(0.3, finish_job, (app, COMPLETED))
    worker.start()
    lines = [json.loads(line) for line in run("watch", "job-1", "--json").stdout.splitlines()]
    worker.join()
    assert [line["event"] for line in lines[:-1]][-1] == "done"
    assert any(line.get("progress") == 40.0 for line in lines)
    assert lines[-1]["status"] == "completed", "the last line is the job itself"


TEXT = "Tides are moving water."


@pytest.mark.parametrize("pieces", [("Tides are ", "moving water."), ()])
def test_watch_prints_the_text_of_a_conversation_once(
    run: Run, app: control.ControlPlane, pieces: tuple[str, ...]
) -> None:
    """While it is streamed, else at the end; never both."""
    run("submit", "--prompt", "What is a tide?", "--type", "chat_conversation", "--id", "job-1")
    claim = claim_job(app)
    for piece in pieces:
        app.ledger.step(claim, items=[("token", {"text": piece})])
    text = Asset(type="text", metadata={"text": TEXT, "format": "text", "asset_index": 0})
    done = Outcome(status="completed", assets=(text,))
    assert app.ledger.end(claim, outcome=done)
    watched = run("watch", "job-1")
    assert watched.exit_code == 0, watched.output
    assert watched.stdout.count(TEXT) == 1
    assert run("show", "job-1").stdout.count(TEXT) == 1


def test_show_prints_the_result_of_an_administration_job(run: Run, app: control.ControlPlane) -> None:
    """The JSON document, not only its type."""
    payload = {"id": "job-1", "type": "admin_utilities", "operation": "queues"}
    run("submit", "-", input=json.dumps(payload))
    asset = Asset(type="json", metadata={"result": {"queues": {"sdxl_queue": {"depth": 3}}}})
    finish_job(app, Outcome(status="completed", assets=(asset,)))
    assert '"depth": 3' in run("show", "job-1").stdout


def test_a_failed_job_is_exit_status_one(run: Run, app: control.ControlPlane) -> None:
    """The error code is on standard error."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    finish_job(app, FAILED)
    for command in ("watch", "show"):
        result = run(command, "job-1")
        assert result.exit_code == 1
        assert "WORKER_LOST" in result.stderr


def test_watching_an_unknown_job_fails_at_once(run: Run) -> None:
    """A wrong id must not wait forever."""
    result = run("watch", "none")
    assert result.exit_code == 1
    assert "NOT_FOUND" in result.stderr


def test_a_job_can_be_cancelled_retried_and_deleted(run: Run, app: control.ControlPlane) -> None:
    """One command for each route; a change that the job's status does not allow is a conflict."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    assert run("cancel", "job-1").exit_code == 0
    assert "CONFLICT" in run("cancel", "job-1").stderr
    assert run("retry", "job-1").exit_code == 0
    record = app.ledger.get("job-1")
    assert record is not None
    assert (record.status, record.run) == ("queued", 2)
    run("cancel", "job-1", "--json")
    for job_id in app.ledger.due_deliveries():
        while (event := app.ledger.lease_event(job_id, lease_s=60, token=job_id)) is not None:
            app.ledger.mark_delivered(event, status=200)
    assert run("delete", "job-1").exit_code == 0
    assert app.ledger.get("job-1") is None


def test_the_list_filters_and_pages(run: Run) -> None:
    """Newest first; the cursor continues after a page."""
    for number in range(3):
        run("submit", "--prompt", "a hill", "--id", f"job-{number}", "--user", "me" if number else "you")
    page = json.loads(run("list", "--user", "me", "--limit", "1", "--json").stdout)
    assert [row["job_id"] for row in page["items"]] == ["job-2"]
    rest = run("list", "--user", "me", "--cursor", page["cursor"])
    assert "job-1" in rest.stdout
    assert "job-0" not in rest.stdout


def test_a_list_of_jobs_is_one_line_a_job_at_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ids as callers have them and the longest type; a longer id moves only the rest of its own line."""
    monkeypatch.setenv("COLUMNS", "80")
    ids = [str(uuid.UUID(int=number)) for number in range(3)] + [
        f"chatcmpl-{uuid.UUID(int=4).hex}",
        "x" * 128,
    ]
    for job_id in ids:
        run("submit", "--prompt", "a hill", "--id", job_id, "--type", "video7b_high_enhanced")
    header, *lines = run("list").stdout.splitlines()
    assert header.split() == ["job", "type", "status"]
    assert [line.split() for line in lines] == [
        [job_id, "video7b_high_enhanced", "queued"] for job_id in reversed(ids)
    ]
    assert all(len(line) <= 80 for line in lines if "x" not in line)
