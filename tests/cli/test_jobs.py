"""`ourvidz jobs` against a real shim over HTTP; the test is the worker."""

from __future__ import annotations

import json
import socket
import threading
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
from ourvidz.ledger.record import Claim
from ourvidz.settings import load_settings
from ourvidz.web.main import create_app
from ourvidz.wiring import control

KEY = "a-key-for-these-tests"
ASSET = "workspace-temp/cli/job-1/0.png"
Run = Callable[..., Result]


@pytest.fixture
def at(tmp_path: Path, make_ledger: Callable[..., Any]) -> Iterator[control.ControlPlane]:
    """A control plane; messages go to a broker in this process."""
    before = celery.conf.broker_url
    celery.conf.broker_url = "memory://"
    celery._after_fork()
    chosen = load_settings(
        OURVIDZ_STATE_DIR=tmp_path, OURVIDZ_API_KEYS=f"test:{KEY}:jobs+chat+admin", _env_file=None
    )
    yield control.build(chosen, ledger=make_ledger())
    celery.conf.broker_url = before
    celery._after_fork()


@pytest.fixture
def url(at: control.ControlPlane) -> Iterator[str]:
    """A running shim."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(create_app(at), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def run(url: str) -> Run:
    """`ourvidz jobs …` with this shim and its key."""

    def invoke(command: str, *arguments: str, key: str = KEY, **more: Any) -> Result:
        asked = ["jobs", command, *arguments, "--url", url, "--api-key", key]
        return CliRunner().invoke(cli, asked, **more)

    return invoke


def claimed(at: control.ControlPlane, job_id: str = "job-1") -> Claim:
    claim = at.ledger.claim(job_id, 1, worker_id="sdxl@test", lease_s=60, token=job_id)
    assert claim is not None
    return claim


def end(at: control.ControlPlane, outcome: Outcome) -> None:
    claim = claimed(at)
    at.ledger.step(claim, progress=40.0, items=[("progress", {"progress": 40.0})])
    assert at.ledger.end("job-1", run=1, fence=claim.fence, outcome=outcome)


COMPLETED = Outcome(
    status="completed", assets=(Asset(type="image", key=ASSET),), metadata={"generation_time": 1.0}
)
FAILED = Outcome.failure(WorkerLost("the worker went away"))


def test_the_options_make_the_payload_that_they_say(run: Run, at: control.ControlPlane) -> None:
    """What a person types is what the worker gets."""
    result = run(
        "submit", "--prompt", "a red circle", "--id", "job-1", "--steps", "9", "--size", "96x64",
        "--seed", "5", "--num-images", "3", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["job_id"] == "job-1"
    job = at.ledger.job("job-1")
    assert job is not None
    said = job.model_dump(include={"prompt", "steps", "width", "height", "seed", "num_images", "user_id"})
    assert said == {
        "prompt": "a red circle", "steps": 9, "width": 96, "height": 64, "seed": 5, "num_images": 3,
        "user_id": "cli",
    }  # fmt: skip


def test_a_payload_comes_from_a_file_or_from_standard_input(run: Run, tmp_path: Path) -> None:
    """The samples of the field are files; scripts have pipes."""
    payload = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
    (tmp_path / "job.json").write_text(json.dumps(payload))
    assert run("submit", str(tmp_path / "job.json")).stdout.strip() == "a"
    assert run("submit", "-", input=json.dumps(payload | {"id": "b"})).stdout.strip() == "b"


def test_what_is_no_job_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    """Exit status 2 means: the command line is wrong, nothing was sent."""
    (tmp_path / "broken.json").write_text("{")
    for wrong in (["submit"], ["submit", str(tmp_path / "broken.json")],
                  ["submit", "--prompt", "x", "--size", "big"]):  # fmt: skip
        assert run(*wrong).exit_code == 2


def test_a_refusal_is_one_line_with_its_code(run: Run) -> None:
    """Problem documents are for programs; a person reads the code and the sentence."""
    result = run("submit", "--prompt", "a hill", "--num-images", "2")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: INVALID_PARAMETERS: ")
    assert "num_images" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_wrong_key_and_a_shim_that_is_away_are_one_line_each(run: Run) -> None:
    """Both happen every day; neither is a traceback."""
    assert "UNAUTHORIZED" in run("list", key="wrong").stderr
    away = CliRunner().invoke(cli, ["jobs", "list", "--url", "http://127.0.0.1:9"])
    assert away.exit_code == 1
    assert "nothing answers at http://127.0.0.1:9" in away.stderr


def test_watching_ends_with_the_job_and_its_pictures(run: Run, at: control.ControlPlane) -> None:
    """Exit status 0 means: the picture is there."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    end(at, COMPLETED)
    result = run("watch", "job-1")
    assert result.exit_code == 0, result.output
    assert "completed" in result.stdout
    assert ASSET in result.stdout


def test_watching_sees_what_happens_while_it_happens(run: Run, at: control.ControlPlane) -> None:
    """The bar moves with the job, not after it."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    worker = threading.Timer(0.3, end, (at, COMPLETED))
    worker.start()
    lines = [json.loads(line) for line in run("watch", "job-1", "--json").stdout.splitlines()]
    worker.join()
    assert [line["event"] for line in lines[:-1]][-1] == "done"
    assert any(line.get("progress") == 40.0 for line in lines)
    assert lines[-1]["status"] == "completed", "the last line is the job itself"


TEXT = "Tides are moving water."


@pytest.mark.parametrize("pieces", [("Tides are ", "moving water."), ()])
def test_watching_a_conversation_shows_its_text_once(
    run: Run, at: control.ControlPlane, pieces: tuple[str, ...]
) -> None:
    """Word by word where it is streamed, at the end where nobody read along."""
    run("submit", "--prompt", "What is a tide?", "--type", "chat_conversation", "--id", "job-1")
    claim = claimed(at)
    for piece in pieces:
        at.ledger.step(claim, items=[("token", {"text": piece})])
    text = Asset(type="text", metadata={"text": TEXT, "format": "text", "asset_index": 0})
    done = Outcome(status="completed", assets=(text,))
    assert at.ledger.end("job-1", run=1, fence=claim.fence, outcome=done)
    watched = run("watch", "job-1")
    assert watched.exit_code == 0, watched.output
    assert watched.stdout.count(TEXT) == 1
    assert run("show", "job-1").stdout.count(TEXT) == 1


def test_an_administration_job_shows_what_it_found(run: Run, at: control.ControlPlane) -> None:
    """Not just that it found something."""
    payload = {"id": "job-1", "type": "admin_utilities", "operation": "queues"}
    run("submit", "-", input=json.dumps(payload))
    found = Asset(type="json", metadata={"result": {"queues": {"sdxl_queue": {"depth": 3}}}})
    end(at, Outcome(status="completed", assets=(found,)))
    assert '"depth": 3' in run("show", "job-1").stdout


def test_a_job_that_failed_is_exit_status_one(run: Run, at: control.ControlPlane) -> None:
    """Scripts branch on it, and the person reads the code."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    end(at, FAILED)
    for command in ("watch", "show"):
        result = run(command, "job-1")
        assert result.exit_code == 1
        assert "WORKER_LOST" in result.stderr


def test_a_job_that_is_not_there_is_not_waited_for(run: Run) -> None:
    """A typo in the id must not hang the terminal."""
    result = run("watch", "none")
    assert result.exit_code == 1
    assert "NOT_FOUND" in result.stderr


def test_a_job_can_be_cancelled_retried_and_deleted(run: Run, at: control.ControlPlane) -> None:
    """The verbs of the routes, one command each; what does not fit the state is a conflict."""
    run("submit", "--prompt", "a hill", "--id", "job-1")
    assert run("cancel", "job-1").exit_code == 0
    assert "CONFLICT" in run("cancel", "job-1").stderr
    assert run("retry", "job-1").exit_code == 0
    record = at.ledger.get("job-1")
    assert record is not None
    assert (record.status, record.run) == ("queued", 2)
    run("cancel", "job-1", "--json")
    for job_id in at.ledger.due_deliveries():
        while (event := at.ledger.lease_event(job_id, lease_s=60, token=job_id)) is not None:
            at.ledger.mark_delivered(event, status=200)
    assert run("delete", "job-1").exit_code == 0
    assert at.ledger.get("job-1") is None


def test_the_list_filters_and_pages(run: Run) -> None:
    """Newest first, and a cursor for the rest."""
    for number in range(3):
        run("submit", "--prompt", "a hill", "--id", f"job-{number}", "--user", "me" if number else "you")
    page = json.loads(run("list", "--user", "me", "--limit", "1", "--json").stdout)
    assert [row["job_id"] for row in page["items"]] == ["job-2"]
    rest = run("list", "--user", "me", "--cursor", page["cursor"])
    assert "job-1" in rest.stdout
    assert "job-0" not in rest.stdout
