"""`ourvidz up` from the first process to the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.system


def test_a_stack_makes_a_picture_tells_its_caller_and_leaves_nothing_behind(
    stack: Callable[..., Any],
) -> None:
    """The whole promise of the embedded mode, once through."""
    with stack() as running:
        ready = running.ready
        assert ready["ready"] is True
        assert ready["studio"] is None, "the shim has no such page"
        assert ready["flower"] is None
        assert set(ready["pids"]) == {"redis", "sdxl", "web", "io", "keeper", "clock"}
        assert all(psutil.pid_exists(pid) for pid in ready["pids"].values())

        running.submit("up-1")
        job = running.wait_done("up-1")
        assert job["status"] == "completed", job
        items = running.wait_callbacks("up-1", "processing", "completed")
        assert all(item["verified"] for item in items)
        asset = items[-1]["payload"]["assets"][0]
        assert running.get(f"/assets/{asset['url']}").content.startswith(b"\x89PNG")

        family = running.family()
        assert running.stop() == 0
        assert running.outliving(family, within_s=5) == [], "a process outlived `up`"


def test_whatever_dies_comes_back_and_the_next_start_knows_the_jobs(stack: Callable[..., Any]) -> None:
    """Supervision and the durable state, over one restart of the whole."""
    with stack() as first:
        before = first.kill("io")
        first.submit("up-2")
        assert first.wait_done("up-2")["status"] == "completed"
        first.wait_callbacks("up-2", "processing", "completed", within_s=30)
        assert first.pid_of("io") != before
        family = first.family()
        first.process.kill()
        assert first.outliving(family, within_s=10) == [], "`up` was killed and left orphans"
    with stack() as second:
        assert second.job("up-2")["status"] == "completed"
        assert second.stop() == 0


def test_a_job_that_cannot_finish_in_time_is_handed_back_and_made_after_the_next_start(
    stack: Callable[..., Any],
) -> None:
    """Stopping does not wait for a long job, does not lose it, and does not count it as a failure."""
    long = {"width": 128, "height": 128, "num_images": 6, "steps": 100, "seed": 3}
    # Longer than a worker takes to notice SIGTERM (one poll of the broker), shorter than the job.
    with stack(env={"OURVIDZ_DRAIN_S": "1.5"}) as first:
        first.submit("up-3", config=long)
        first.wait_for(lambda: first.job("up-3")["status"] == "processing", "the job did not start")
        assert first.stop() == 0
    with stack() as second:
        assert second.job("up-3")["attempt"] <= 1, "the interrupted attempt counts"
        assert second.wait_done("up-3")["status"] == "completed"
        assert second.job("up-3")["attempt"] == 1
