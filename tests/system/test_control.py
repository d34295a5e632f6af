"""Cancel, retry, pause, drain, revoke, observe and judge pictures on a running stack."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import requests
from PIL import Image

from training.scenes import composite
from training.shapes import coverage

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

LONG = {"steps": 100, "num_images": 6, "width": 128, "height": 128, "seed": 3}
MEDIUM = {**LONG, "num_images": 1}
"""Long enough to be met while it runs, for jobs that run to their end."""
SHORT = {"steps": 1, "width": 64, "height": 64, "seed": 1}
SECRET_PROMPT = "a heron over a silver lake"


@pytest.fixture(scope="module")
def running(stacks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One stack with Flower for all tests of this module."""
    classifier = {"OURVIDZ_IMAGE_CLASSIFIER": "tests.shape_classifier:refuse_stars"}
    with stacks(tmp_path_factory.mktemp("control"), "--flower", env=classifier) as running:
        yield running


def flower(running: Any, method: str, path: str, **options: Any) -> requests.Response:
    """Call the API of Flower with the login that `ourvidz up` has printed."""
    login = tuple(running.ready["flower_login"].split(":"))
    url = f"{running.ready['flower']}/api/{path}"
    return requests.request(method, url, **{"auth": login, "timeout": 10, **options})


def start_long(running: Any, job_id: str, config: dict[str, int] = LONG) -> None:
    """Submit a long job and wait for its first progress."""
    running.submit(job_id, config=config)
    for item in running.client.events(job_id):
        if item.kind == "progress" and item.data["progress"] > 0:
            return
    raise AssertionError(f"{job_id} ended before it had made progress")


def test_a_cancelled_running_job_stops_long_before_its_end(running: Any) -> None:
    """At its next report, a quarter of a second later at most. The caller gets one terminal callback with the
    code CANCELLED."""
    start_long(running, "running")
    assert running.post("/jobs/running/cancel").status_code == 200
    progress = running.record("running").progress
    job = running.wait_done("running")
    assert job["status"] == "cancelled"
    assert running.record("running").progress <= progress + 20 < 99
    last = running.wait_callbacks("running", "processing", "failed")[-1]["payload"]
    assert last["error"]["code"] == "CANCELLED"
    assert running.post("/jobs/running/cancel").status_code == 409


def test_a_cancelled_queued_job_never_runs_and_a_retry_of_it_does(running: Any) -> None:
    """The message in the broker claims nothing after the cancellation."""
    running.client.post("/queues/sdxl_queue/pause")
    running.submit("waiting", config=SHORT)
    assert running.post("/jobs/waiting/cancel").json()["status"] == "cancelled"
    running.client.post("/queues/sdxl_queue/resume")
    running.submit("after", config=SHORT)
    assert running.wait_done("after")["status"] == "completed"
    running.wait_callbacks("waiting", "failed")
    assert running.record("waiting").attempt == 0
    assert running.post("/jobs/waiting/retry").status_code == 202
    assert running.wait_done("waiting")["status"] == "completed"
    running.wait_callbacks("waiting", "failed", "processing", "completed")


def test_a_retry_of_a_cancelled_running_job_runs(running: Any) -> None:
    """A retry runs the job again under its id, as the next run."""
    start_long(running, "undone", MEDIUM)
    running.client.post("/jobs/undone/cancel")
    assert running.wait_done("undone")["status"] == "cancelled"
    running.client.post("/jobs/undone/retry")
    job = running.wait_done("undone")
    assert (job["status"], job["run"], job["attempt"]) == ("completed", 2, 1)


def test_a_paused_queue_accepts_jobs_and_starts_none(running: Any) -> None:
    """Callers can submit during maintenance."""
    running.client.post("/queues/sdxl_queue/pause")
    names = [f"paused{number}" for number in range(3)]
    for name in names:
        running.submit(name, config=SHORT)
    time.sleep(3)  # longer than a sweep: nothing must start in it
    assert [running.record(name).status for name in names] == ["queued"] * 3
    running.client.post("/queues/sdxl_queue/resume")
    for name in names:
        assert running.wait_done(name)["status"] == "completed"


def test_a_drained_worker_finishes_its_job_and_claims_no_other(running: Any) -> None:
    """A job submitted in the meantime runs after the worker is resumed."""
    worker = next(
        one["id"] for one in running.get("/health").json()["workers"] if one["queue"] == "sdxl_queue"
    )
    start_long(running, "last", MEDIUM)
    assert running.post(f"/workers/{worker}/drain").status_code == 200
    running.submit("held", config=SHORT)
    assert running.wait_done("last")["status"] == "completed"
    time.sleep(3)  # longer than a sweep: nothing must start in it
    assert running.record("held").status == "queued"
    assert running.post(f"/workers/{worker}/resume").status_code == 200
    assert running.wait_done("held")["status"] == "completed"


def test_flower_shows_the_tasks_without_their_prompts(running: Any) -> None:
    """The API of Flower returns task arguments unchanged, so they contain no prompts."""
    running.submit("watched", prompt=SECRET_PROMPT, config=SHORT)
    running.wait_done("watched")
    deadline = time.monotonic() + 30
    while "watched" not in (shown := flower(running, "GET", "tasks").text):
        assert time.monotonic() < deadline, shown[:500]
        time.sleep(0.2)
    assert "heron" not in shown
    assert "ourvidz.sdxl.generate" in shown
    for auth in (None, ("ourvidz", "wrong")):
        assert flower(running, "GET", "tasks", auth=auth).status_code == 401
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert flower(running, "GET", "tasks", headers={"Host": host}).status_code in (400, 403)
    # Who sees the processes of this machine does not see the login.
    argv = psutil.Process(running.ready["pids"]["flower"]).cmdline()
    assert running.ready["flower_login"].partition(":")[2] not in " ".join(argv)


@pytest.mark.parametrize("terminate", ["true", "false"])
def test_a_revoke_in_flower_cancels_the_job(running: Any, terminate: str) -> None:
    """A job whose task an operator revokes still ends."""
    job_id = f"revoked-{terminate}"
    if terminate == "true":
        start_long(running, job_id)
    else:
        running.client.post("/queues/sdxl_queue/pause")
        running.submit(job_id, config=SHORT)
    answer = flower(running, "POST", f"task/revoke/{job_id}", params={"terminate": terminate})
    assert answer.status_code == 200, answer.text
    running.client.post("/queues/sdxl_queue/resume")
    assert running.wait_done(job_id)["status"] == "cancelled"
    statuses = ("processing", "failed") if terminate == "true" else ("failed",)
    assert running.wait_callbacks(job_id, *statuses)[-1]["payload"]["error"]["code"] == "CANCELLED"


def test_no_log_contains_a_prompt_or_a_secret(running: Any) -> None:
    """Logs are copied and shared."""
    running.submit("discreet", prompt=SECRET_PROMPT, config=SHORT)
    running.wait_done("discreet")
    running.wait_callbacks("discreet", "processing", "completed")
    secrets = (running.state_dir / "secrets.json").read_text().split('"')
    words = {"heron", *(one for one in secrets if len(one) > 20)}
    for log in (running.state_dir / "logs").glob("*.log"):
        text = log.read_text(errors="replace")
        assert not [word for word in words if word in text], log.name


def test_metrics_count_jobs_by_type_and_ending(running: Any) -> None:
    """The counts come from the ledger, so every process reports the same."""
    running.submit("counted", config=SHORT)
    running.wait_done("counted")
    shown = running.get("/metrics").text
    assert 'type="sdxl_image_fast"' in shown
    assert "completed" in shown


def test_a_star_is_refused_and_leaves_no_file(running: Any) -> None:
    """As result and as reference; a circle is stored. The caller gets one neutral sentence, the receiver the
    same."""
    star = Image.fromarray(composite(coverage("star", 0.5, 0.5, 0.3, 64, 64), "red", "white"))
    file = io.BytesIO()
    star.save(file, "PNG")
    reference = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    config = {"steps": 15, "width": 64, "height": 64, "seed": 1, "num_images": 3}
    running.submit("circle", prompt="a red circle on a white background", config=config)
    running.submit("star", prompt="a red star on a white background", config=config)
    running.submit("reference", prompt="a red circle", config={**config, "image": reference})
    circle, result, used = map(running.wait_done, ("circle", "star", "reference"))
    assert circle["status"] == "completed", circle
    assert circle["result"]["metadata"]["pictures_judged"] is True
    for refused in (result, used):
        assert refused["status"] == "failed"
        assert refused["error"]["code"] == "POLICY_VIOLATION"
        assert refused["error"]["message"] == "This request cannot be processed."
    running.wait_callbacks("star", "processing", "failed")
    names = {path.parent.name for path in (running.state_dir / "assets").rglob("*") if path.is_file()}
    assert names & {"circle", "star", "reference"} == {"circle"}


def test_two_stacks_run_side_by_side(running: Any, stacks: Callable[..., Any], tmp_path: Any) -> None:
    """They have different ports and state directories; a second `up` on one state directory is refused."""
    again = running.run_up(running.state_dir)
    assert again.returncode == 1
    assert str(running.process.pid) in again.stderr
    with stacks(tmp_path / "other") as other:
        assert other.shim != running.shim
        running.submit("same-id", config=SHORT)
        other.submit("same-id", config=SHORT, prompt="something else")
        assert running.wait_done("same-id")["status"] == "completed"
        assert other.wait_done("same-id")["status"] == "completed"
        processes = other.processes()
        other.process.send_signal(2)
        assert other.process.wait(10) == 0
        assert other.still_running(processes, within_s=1) == []
