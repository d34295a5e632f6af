"""What callers and operators do to a running stack: cancel, retry, pause, drain, look."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

LONG = {"steps": 100, "num_images": 6, "width": 128, "height": 128, "seed": 3}
SHORT = {"steps": 1, "width": 64, "height": 64, "seed": 1}
SECRET_PROMPT = "a heron over a silver lake"


@pytest.fixture(scope="module")
def house(stacks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One stack, with Flower, for everything here."""
    env = {"FLOWER_UNAUTHENTICATED_API": "true"}
    with stacks(tmp_path_factory.mktemp("control"), "--flower", env=env) as running:
        yield running


def start_long(house: Any, job_id: str) -> None:
    house.submit(job_id, config=LONG)
    for item in house.client.events(job_id):
        if item.kind == "progress" and item.data["progress"] > 0:
            return
    raise AssertionError(f"{job_id} ended before it could be disturbed")


def test_a_cancelled_running_job_stops_before_its_next_step(house: Any) -> None:
    """The GPU is free again within a step, and the caller hears CANCELLED once."""
    start_long(house, "running")
    assert house.post("/jobs/running/cancel").status_code == 200
    progress = house.record("running").progress
    job = house.wait_done("running")
    assert job["status"] == "cancelled"
    assert house.record("running").progress <= progress + 1.0 < 99
    last = house.wait_callbacks("running", "processing", "failed")[-1]["payload"]
    assert last["error"]["code"] == "CANCELLED"
    assert house.post("/jobs/running/cancel").status_code == 409


def test_a_cancelled_queued_job_never_runs_and_a_retry_of_it_does(house: Any) -> None:
    """Its message is still in the broker: it must lose."""
    house.client.post("/queues/sdxl_queue/pause")
    house.submit("waiting", config=SHORT)
    assert house.post("/jobs/waiting/cancel").json()["status"] == "cancelled"
    house.client.post("/queues/sdxl_queue/resume")
    house.submit("after", config=SHORT)
    assert house.wait_done("after")["status"] == "completed"
    house.wait_callbacks("waiting", "failed")
    assert house.record("waiting").attempt == 0
    assert house.post("/jobs/waiting/retry").status_code == 202
    assert house.wait_done("waiting")["status"] == "completed"
    house.wait_callbacks("waiting", "failed", "processing", "completed")


def test_a_retry_of_a_cancelled_running_job_runs(house: Any) -> None:
    """Cancel is undone by retry, under the same id, as the next run."""
    start_long(house, "undone")
    house.client.post("/jobs/undone/cancel")
    assert house.wait_done("undone")["status"] == "cancelled"
    house.client.post("/jobs/undone/retry")
    job = house.wait_done("undone")
    assert (job["status"], job["run"], job["attempt"]) == ("completed", 2, 1)


def test_a_paused_queue_takes_jobs_and_starts_none(house: Any) -> None:
    """An operator changes a checkpoint without turning callers away."""
    house.client.post("/queues/sdxl_queue/pause")
    names = [f"paused{number}" for number in range(3)]
    for name in names:
        house.submit(name, config=SHORT)
    time.sleep(3)  # longer than a sweep: nothing must start in it
    assert [house.record(name).status for name in names] == ["queued"] * 3
    house.client.post("/queues/sdxl_queue/resume")
    for name in names:
        assert house.wait_done(name)["status"] == "completed"


def test_a_drained_worker_finishes_its_job_and_takes_no_other(house: Any) -> None:
    """Take one out, put it back, lose nothing."""
    worker = next(one["id"] for one in house.get("/health").json()["workers"] if one["queue"] == "sdxl_queue")
    start_long(house, "last")
    assert house.post(f"/workers/{worker}/drain").status_code == 200
    house.submit("held", config=SHORT)
    assert house.wait_done("last")["status"] == "completed"
    time.sleep(3)  # longer than a sweep: nothing must start in it
    assert house.record("held").status == "queued"
    assert house.post(f"/workers/{worker}/resume").status_code == 200
    assert house.wait_done("held")["status"] == "completed"


def test_flower_shows_the_tasks_and_none_of_their_words(house: Any) -> None:
    """Its API gives arguments away raw, so they must never get there."""
    house.submit("watched", prompt=SECRET_PROMPT, config=SHORT)
    house.wait_done("watched")
    ends = time.monotonic() + 30
    while "watched" not in (shown := requests.get(f"{house.ready['flower']}/api/tasks", timeout=10).text):
        assert time.monotonic() < ends, shown[:500]
        time.sleep(0.2)
    assert "heron" not in shown
    assert "ourvidz.sdxl.generate" in shown


@pytest.mark.parametrize("terminate", ["true", "false"])
def test_a_revoke_from_flower_is_a_cancel(house: Any, terminate: str) -> None:
    """An operator who uses Celery's own button must not leave a job that never ends."""
    job_id = f"revoked-{terminate}"
    if terminate == "true":
        start_long(house, job_id)
    else:
        house.client.post("/queues/sdxl_queue/pause")
        house.submit(job_id, config=SHORT)
    answer = requests.post(
        f"{house.ready['flower']}/api/task/revoke/{job_id}", params={"terminate": terminate}, timeout=10
    )
    assert answer.status_code == 200, answer.text
    house.client.post("/queues/sdxl_queue/resume")
    assert house.wait_done(job_id)["status"] == "cancelled"
    told = ("processing", "failed") if terminate == "true" else ("failed",)
    assert house.wait_callbacks(job_id, *told)[-1]["payload"]["error"]["code"] == "CANCELLED"


def test_no_log_carries_a_prompt_or_a_secret(house: Any) -> None:
    """Logs travel further than anyone plans."""
    house.submit("discreet", prompt=SECRET_PROMPT, config=SHORT)
    house.wait_done("discreet")
    house.wait_callbacks("discreet", "processing", "completed")
    secrets = (house.state_dir / "secrets.json").read_text().split('"')
    words = {"heron", *(one for one in secrets if len(one) > 20)}
    for log in (house.state_dir / "logs").glob("*.log"):
        told = log.read_text(errors="replace")
        assert not [word for word in words if word in told], log.name


def test_metrics_count_what_happened(house: Any) -> None:
    """A dashboard sees jobs, callbacks and workers without asking them."""
    house.submit("counted", config=SHORT)
    house.wait_done("counted")
    shown = house.get("/metrics").text
    assert 'type="sdxl_image_fast"' in shown
    assert "completed" in shown


def test_two_stacks_live_side_by_side(house: Any, stacks: Callable[..., Any], tmp_path: Any) -> None:
    """Own ports, own state; the same state is refused."""
    again = house.run_up(house.state_dir)
    assert again.returncode == 1
    assert str(house.process.pid) in again.stderr
    with stacks(tmp_path / "other") as beside:
        assert beside.shim != house.shim
        house.submit("same-id", config=SHORT)
        beside.submit("same-id", config=SHORT, prompt="something else")
        assert house.wait_done("same-id")["status"] == "completed"
        assert beside.wait_done("same-id")["status"] == "completed"
        family = beside.family()
        beside.process.send_signal(2)
        assert beside.process.wait(10) == 0
        assert beside.outliving(family, within_s=1) == []
