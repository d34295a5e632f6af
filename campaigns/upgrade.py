"""Rolling upgrade and downgrade, with jobs in flight at every step.

    python -m campaigns.upgrade [--jobs 50] [--previous COMMIT] [--json]

An installation of the previous release is upgraded one group of processes at a time, helpers (keeper, io)
first, then the worker, then the shim; then it is downgraded in the same order. At each step jobs are
submitted, the group is replaced while they wait and run, and every job of the campaign is submitted again
afterwards. So old and new releases of shim, worker and helpers meet in each combination that a deploy passes.

No job may be lost, end twice, fail, be charged an attempt or lack its file; every resubmission is answered
200. Exits with 1 otherwise. Without the history of the repository nothing is tested: a line says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import requests

from campaigns.installation import POLL_S, Installation
from campaigns.receiver import CallbackReceiver
from campaigns.releases import CURRENT, PREVIOUS, HistoryMissing, Release, unpack
from ourvidz.cli.console import print_note

CLIENTS = 4
"""Threads that submit jobs at the same time."""
GROUPS = ("helpers", "sdxl", "web")
"""The order of a deploy: whoever repairs must understand what others write."""
SUBMIT_S = 60.0
"""How long a caller repeats a submission while the shim is being replaced."""
END_S = 90.0
"""How long the jobs of one step may take to end, in all."""
USER = "campaign"


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step: the number of its jobs, and of the broken promises.

    `releases` names the release of helpers, worker and shim after the step. `lost`: no terminal callback.
    `doubled`: more than one terminal event. `failed`: not completed. `charged`: more than one attempt.
    `files_missing`: the image cannot be read. `refused`: resubmissions that were not answered 200.
    """

    name: str
    releases: str
    jobs: int
    seconds: float
    lost: int
    doubled: int
    failed: int
    charged: int
    files_missing: int
    refused: int

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not any((self.lost, self.doubled, self.failed, self.charged, self.files_missing, self.refused))


def payload(job_id: str) -> dict[str, Any]:
    """The payload of the smallest job. Most of its fields are left to the defaults."""
    return {"id": job_id, "type": "sdxl_image_fast", "prompt": "a hill", "user_id": USER}


def submit(shim: str, job_id: str) -> int:
    """Submit a job until a shim answers. Returns the HTTP status."""
    deadline = time.monotonic() + SUBMIT_S
    while True:
        try:
            answer = requests.post(f"{shim}/jobs", json=payload(job_id), timeout=30)
            if answer.status_code not in (502, 503):
                return answer.status_code
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError(f"{job_id} was not accepted within {SUBMIT_S:g} s")
        time.sleep(POLL_S)


def roll(
    installation: Installation, receiver: CallbackReceiver, old: Release, new: Release, jobs: int
) -> Iterator[Step]:
    """Upgrade an installation from `old` to `new` and downgrade it again; yields the result of each step."""
    running = dict.fromkeys(GROUPS, old)
    for group in GROUPS:
        installation.replace(group, old)
    submitted: list[str] = []
    steps = [(group, new) for group in GROUPS] + [(group, old) for group in GROUPS]
    for number, (group, release) in enumerate(steps):
        started = time.monotonic()
        job_ids = [f"step{number}-{index}" for index in range(jobs)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            statuses = pool.map(lambda job_id: submit(installation.shim, job_id), job_ids)
            # The first are accepted by what runs before the step; the others meet it.
            first = next(statuses)
            installation.replace(group, release)
            accepted = [first, *statuses]
        running[group] = release
        unexpected = sum(status != 202 for status in accepted)
        lost = receiver.wait_for(job_ids, within_s=END_S)
        submitted += job_ids
        with ThreadPoolExecutor(CLIENTS) as pool:
            again = list(pool.map(lambda job_id: submit(installation.shim, job_id), submitted))
        yield Step(
            name=f"{group} becomes {release.name}",
            releases="/".join(running[name].name for name in GROUPS),
            jobs=jobs,
            seconds=round(time.monotonic() - started, 1),
            lost=len(lost),
            refused=unexpected + sum(status != 200 for status in again),
            **_inspect(installation, receiver, job_ids),
        )


def _inspect(installation: Installation, receiver: CallbackReceiver, job_ids: list[str]) -> dict[str, int]:
    """Count the broken promises among jobs that have ended."""
    records = installation.ledger.records(job_ids)
    endings = [list(receiver.endings[job_id].values()) for job_id in job_ids]
    return {
        "doubled": sum(len(statuses) > 1 for statuses in endings),
        "failed": sum(any(status != "completed" for status in statuses) for statuses in endings),
        "charged": sum(record.attempt > 1 or bool(record.failures) for record in records),
        "files_missing": sum(
            not (installation.assets / asset.key).is_file()
            for record in records
            for asset in (record.outcome.assets if record.outcome else ())
            if asset.key
        ),
    }


def run(jobs: int, previous: str = PREVIOUS) -> Iterator[Step]:
    """Run the campaign in a temporary folder. Raises `HistoryMissing`."""
    with tempfile.TemporaryDirectory(prefix="ourvidz-upgrade-") as name, CallbackReceiver() as receiver:
        old = unpack(previous, Path(name) / "release")
        with Installation(Path(name) / "state", receiver) as installation:
            yield from roll(installation, receiver, old, CURRENT, jobs)
            counters = installation.ledger.counters()
            completed = counters.get("jobs.sdxl_image_fast.completed", 0)
            if completed != 2 * len(GROUPS) * jobs:
                raise AssertionError(f"{completed} jobs were completed, {2 * len(GROUPS) * jobs} submitted")


def main() -> None:
    """Run the campaign and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=50, help="number of jobs at each step")
    parser.add_argument("--previous", default=PREVIOUS, help="commit of the release to start from")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    steps = []
    try:
        for step in run(arguments.jobs, arguments.previous):
            print_note(f"{step.name}: {step.seconds:g} s")
            steps.append(step)
    except HistoryMissing as missing:
        print_note(f"skipped: {missing}")
        return
    if arguments.json:
        print(json.dumps([asdict(step) for step in steps], indent=2))
    else:
        print_table(steps)
    sys.exit(0 if all(step.kept for step in steps) else 1)


def print_table(steps: list[Step]) -> None:
    """Print one line for each step."""
    counts = [field.name for field in fields(Step)][2:]
    print(f"{'step':24}{'helpers/sdxl/web':18}" + "".join(f"{name:>15}" for name in counts))
    for step in steps:
        values = "".join(f"{getattr(step, name):>15}" for name in counts)
        print(f"{step.name:24}{step.releases:18}{values}")


if __name__ == "__main__":
    main()
