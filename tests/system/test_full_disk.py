"""`ourvidz up` on a disk that something else fills."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import MIB
from tests.system.conftest import Stack, stack, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

SHORT = {"steps": 1, "width": 64, "height": 64, "seed": 1}


def fill(disk: Path, leave: int) -> None:
    """Let a file grow until so many bytes are free; space that is released meanwhile stays free."""
    wanted = shutil.disk_usage(disk).free - leave
    with (disk / "other").open("ab", buffering=0) as file, suppress(OSError):
        while wanted > 0:
            wanted -= file.write(bytes(min(MIB, wanted)))


def status_of(running: Stack, job_id: str) -> tuple[int, str | None]:
    """Submit a job; the status and the error code of the answer."""
    answer = running.post("/jobs", running.payload(job_id, config=SHORT))
    return answer.status_code, answer.json().get("code")


def test_jobs_are_refused_before_the_disk_is_full_and_nothing_is_lost(
    small_disk: Callable[[int], Path],
) -> None:
    """The server exits when it cannot write; what was accepted must be there when space returns."""
    disk = small_disk(256)
    with stack(disk / "state") as running:
        running.submit("before", config=SHORT)
        running.wait_done("before")
        reserve = disk / "state/redis/reserve"
        wait_for(reserve.exists, within_s=10, why="there is no reserve")
        running.client.post("/queues/sdxl_queue/pause")
        running.submit("waiting", config=SHORT)
        fill(disk, leave=48 * MIB)
        ids = (f"try-{number}" for number in count())
        wait_for(
            lambda: status_of(running, next(ids)) == (503, "CAPACITY_EXCEEDED"),
            within_s=5,
            why="jobs are accepted although the disk is almost full",
        )
        assert status_of(running, "waiting")[0] == 200
        fill(disk, leave=0)
        wait_for(lambda: not reserve.exists(), within_s=10, why="the reserve was not released")
        running.client.post("/queues/sdxl_queue/resume")
        assert running.wait_done("waiting")["status"] == "completed"
        (disk / "other").unlink()
        wait_for(reserve.exists, within_s=10, why="the reserve did not come back")
        wait_for(
            lambda: status_of(running, "after")[0] in (200, 202), within_s=20, why="no job is accepted again"
        )
        assert running.wait_done("after")["status"] == "completed"
        assert {running.job(job_id)["status"] for job_id in ("before", "waiting")} == {"completed"}
