"""Submits many jobs to an installation, in processes of their own, as fast as they can.

OURVIDZ_REDIS_URL=… python -m benchmarks.filling PREFIX JOBS
"""

from __future__ import annotations

import os
import subprocess
import sys

PROCESSES = 3


def fill(redis_url: str, jobs: int, *, prefix: str) -> None:
    """Queue jobs under the ids `PREFIX-PROCESS-NUMBER`, each of one of 100 users; wait until all are."""
    shares = [jobs // PROCESSES + (number < jobs % PROCESSES) for number in range(PROCESSES)]
    env = os.environ | {"OURVIDZ_REDIS_URL": redis_url, "OURVIDZ_MAX_QUEUED": "10000000"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.filling", f"{prefix}-{number}", str(share)], env=env
        )
        for number, share in enumerate(shares)
    ]
    for process in processes:
        assert process.wait() == 0, "the jobs could not be submitted"


def payload(job_id: str, user: str) -> dict[str, object]:
    """The payload of the smallest image job: one step, 64x64 px."""
    config = {"steps": 1, "seed": 1, "width": 64, "height": 64}
    return {"id": job_id, "type": "sdxl_image_fast", "prompt": "a hill", "user_id": user, "config": config}


def main() -> None:
    """Submit the jobs of one process."""
    from ourvidz import dispatch

    prefix, jobs = sys.argv[1], int(sys.argv[2])
    for number in range(jobs):
        dispatch.submit(payload(f"{prefix}-{number}", f"user{number % 100}"))


if __name__ == "__main__":
    main()
