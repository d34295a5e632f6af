"""`ourvidz up`: start, a job, restarts of processes and of the stack, stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.system


def test_a_stack_runs_jobs_restarts_a_killed_process_and_stops_completely(
    stack: Callable[..., Any],
) -> None:
    """The embedded mode from start to stop."""
    with stack() as running:
        ready = running.ready
        assert ready["ready"] is True
        assert ready["studio"] is None, "the shim has no such page"
        assert ready["flower"] is None
        assert set(ready["pids"]) == {"redis", "sdxl", "web", "io", "keeper"}
        assert all(psutil.pid_exists(pid) for pid in ready["pids"].values())
        beats = {f"{path.parent.name}/{path.name}" for path in (running.state_dir / "beats").glob("*/*")}
        assert beats >= {"redis/ping", "sdxl/process", "sdxl/child", "web/event-loop", "io/process"}
        assert "keeper/duty-sweep" in beats, "a process that hangs would not be noticed"
        assert running.get("/health").json()["reasons"] == []

        running.submit("up-1")
        job = running.wait_done("up-1")
        assert job["status"] == "completed", job
        items = running.wait_callbacks("up-1", "processing", "completed")
        assert all(item["verified"] for item in items)
        asset = items[-1]["payload"]["assets"][0]
        assert running.get(f"/assets/{asset['url']}").content.startswith(b"\x89PNG")

        before = running.kill("io")
        running.submit("up-2")
        assert running.wait_done("up-2")["status"] == "completed"
        running.wait_callbacks("up-2", "processing", "completed", within_s=30)
        assert running.pid_of("io") != before

        processes = running.processes()
        assert running.stop() == 0
        assert running.still_running(processes, within_s=5) == [], "a process outlived `up`"


def test_several_families_share_the_libraries_that_one_process_has_imported(
    stack: Callable[..., Any],
) -> None:
    """Each of them imported the same three hundred megabytes. A fork server that dies takes the children with
    it, and their workers go on with new ones."""
    config = {"steps": 2, "width": 64, "height": 64}
    with stack("--workers", "sdxl,wan") as running:
        families = ("sdxl", "wan")
        fork_server = running.ready["pids"]["forkserver"]
        children = {running.pool_child(family) for family in families}
        assert {psutil.Process(child).ppid() for child in children} == {fork_server}
        running.submit("before", config=config)
        assert running.wait_done("before")["status"] == "completed"
        psutil.Process(fork_server).kill()
        running.wait_for(
            lambda: not any(map(psutil.pid_exists, children)), "a child outlived the fork server", 30
        )
        for family, job_type in zip(families, ("sdxl_image_fast", "image_fast"), strict=True):
            running.submit(f"after-{family}", type=job_type, config=config)
            assert running.wait_done(f"after-{family}", within_s=60)["status"] == "completed"
        processes = running.processes()
        assert running.stop() == 0
        assert running.still_running(processes, within_s=5) == [], "a process outlived `up`"


def test_finished_and_interrupted_jobs_outlive_the_stack(stack: Callable[..., Any]) -> None:
    """A stop does not wait for a long job; its interrupted attempt does not count, and it runs after the next
    start. A killed `up` leaves no process behind."""
    long = {"width": 128, "height": 128, "num_images": 3, "steps": 100, "seed": 3}
    # Longer than a worker takes to notice SIGTERM (one poll of the broker), shorter than the job.
    with stack(env={"OURVIDZ_DRAIN_S": "1.5"}) as first:
        first.submit("up-3")
        assert first.wait_done("up-3")["status"] == "completed"
        first.submit("up-4", config=long)
        first.wait_for(lambda: first.job("up-4")["status"] == "processing", "the job did not start")
        assert first.stop() == 0
    with stack() as second:
        assert second.job("up-3")["status"] == "completed"
        assert second.job("up-4")["attempt"] <= 1, "the interrupted attempt counts"
        assert second.wait_done("up-4")["status"] == "completed"
        assert second.job("up-4")["attempt"] == 1
        processes = second.processes()
        second.process.kill()
        assert second.still_running(processes, within_s=10) == [], (
            "`up` was killed and left processes running"
        )
