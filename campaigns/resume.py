"""Do images and clips survive the death of their worker, byte for byte, and what does it cost?

    python -m campaigns.resume [--kills 50] [--interval 0.2] [--seed 1] [--folder DIR] [--json]

SDXL and Wan jobs with untrained models: with and without references, one and three images, both solvers.
The process of an attempt is killed with SIGKILL at a random step, again and again, and the next attempt runs
in a new process. Now and then the newest checkpoint is cut off before that. Each job runs a second time
without any disturbance.

`different` counts the files whose bytes differ from those of the second run, `late` the kills that cost more
than the interval, a step, and the writing of a checkpoint, `unreported` the jobs whose metadata does not say
how far they came or why they started over, `left` the checkpoints that outlived their job. All must be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from campaigns.releases import ROOT
from campaigns.resource import Resource
from ourvidz.cli.console import print_note
from ourvidz.embedded_redis import PrivateServer, find_server
from ourvidz.jobs.job import ImageJob, Job, VideoJob
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.storage.keys import CHECKPOINTS, checkpoint_key, checkpoints_folder, fence_of
from ourvidz.storage.local import LocalStore
from ourvidz.subprocesses import dying_with_parent

KILLS_PER_JOB = 4
CUT_OFF_SHARE = 0.15
"""How many of the checkpoints are cut off."""
USER = "campaign"
REFERENCE = f"user-library/{USER}/still-life.png"
CLOCK_SLACK_S = 0.02
"""Between an event and its report."""


@dataclass(slots=True)
class Attempt:
    """What one process of an attempt has reported."""

    steps: list[tuple[int, float]] = field(default_factory=list)
    """Steps that were finished, and when; the first is the one from which it went on."""
    total: int = 0
    copied: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)
    status: int = 0

    def allowance_s(self, interval_s: float) -> float:
        """What its death may cost: the interval or the longest write, a step, and a write without an end."""
        writes = [saved - copied for copied, saved in zip(self.copied, self.saved, strict=False)]
        times = [time for _, time in self.steps]
        longest_step = max((after - before for before, after in pairwise(times)), default=0)
        unfinished = self.copied[len(self.saved) :]
        return (
            max([interval_s, *writes])
            + longest_step
            + sum(times[-1] - copied for copied in unfinished if copied < times[-1])
            + CLOCK_SLACK_S
        )

    def lost(self, resumed_from: int) -> tuple[int, float]:
        """The steps, and the seconds of work, that an attempt which went on from there repeats."""
        since = next((time for done, time in self.steps if done >= resumed_from), self.steps[-1][1])
        return self.steps[-1][0] - resumed_from, self.steps[-1][1] - since


@dataclass(slots=True)
class Result:
    """What a campaign has counted; see the module for the promises."""

    jobs: int = 0
    kills: int = 0
    resumed: int = 0
    started_over: int = 0
    cut_off: int = 0
    steps: int = 0
    """Of all jobs, without repetitions."""
    repeated_steps: int = 0
    most_repeated_steps: int = 0
    most_lost_s: float = 0.0
    slowest_write_s: float = 0.0
    different: int = 0
    late: int = 0
    unreported: int = 0
    left: int = 0

    @property
    def kept(self) -> bool:
        """Whether all promises were kept."""
        return not (self.different or self.late or self.unreported or self.left)


class Nursery(Resource):
    """A Redis server, a storage, and the process that forks attempts."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.store = LocalStore(folder / "assets")

    def logs(self) -> list[Path]:
        """What the attempts write to standard error."""
        return [self._folder / "attempts.log"]

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        server = PrivateServer(binary=find_server(None), folder=self._folder)
        server.start()
        self._cleanup.callback(server.kill)
        self.ledger = Ledger(server.url)
        self._cleanup.callback(self.ledger.close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaigns.attempts", str(self._folder), server.url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._folder / "attempts.log").open("ab"),
            text=True,
            preexec_fn=dying_with_parent(signal.SIGKILL),
        )
        self._cleanup.callback(self._process.wait)
        self._cleanup.callback(self._process.kill)
        self._lines = self._read()
        if next(self._lines) != ["ready"]:
            raise RuntimeError("the models were not loaded")

    def attempt(self, job_id: str, *, interval_s: float, kill_at: int | None = None) -> Attempt:
        """Run an attempt of a job. Its process is killed when it has reported the step `kill_at`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"job": job_id, "interval_s": interval_s}) + "\n")
        self._process.stdin.flush()
        attempt, pid = Attempt(), 0
        for name, *values in self._lines:
            if name == "pid":
                pid = int(values[0])
            elif name == "step":
                attempt.steps.append((int(values[0]), float(values[2])))
                attempt.total = int(values[1])
                if kill_at is not None and int(values[0]) >= kill_at:
                    kill_at = None
                    os.kill(pid, signal.SIGKILL)
            elif name in ("copied", "saved"):
                getattr(attempt, name).append(float(values[0]))
            elif name == "exit":
                attempt.status = int(values[0])
                return attempt
        raise RuntimeError("the process that forks attempts has ended")

    def _read(self) -> Iterator[list[str]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.split()


def run(folder: Path, *, kills: int, interval_s: float, seed: int) -> Result:
    """Run jobs until so many attempts were killed."""
    numbers, result = random.Random(seed), Result()
    with Nursery(folder) as nursery:
        while result.kills < kills:
            result.jobs += 1
            job = make_job(result.jobs, numbers)
            remaining = min(KILLS_PER_JOB, kills - result.kills)
            run_job(nursery, job, result, numbers, kills=remaining, interval_s=interval_s)
        result.left = len(nursery.store.folders(CHECKPOINTS))
    return result


def make_job(number: int, numbers: random.Random) -> Job:
    """A job of the next kind."""
    fields: dict[str, Any] = {
        "id": f"job-{number}",
        "user_id": USER,
        "expected_time": 30,
        "prompt": "a red hill above a lake",
        "seed": numbers.randrange(1 << 30),
        "guidance_scale": 5.0,
    }
    size = {"width": 128, "height": 128}
    kind = number % 5
    if kind in (1, 3):
        # More steps than the catalog offers: a step of these models takes milliseconds.
        image = {"type": "sdxl_image_high", "steps": 40, **size}
        batch = {"num_images": 3} if kind == 3 else {"reference": REFERENCE, "denoise_strength": 0.8}
        return ImageJob(**fields, **image, **(batch if numbers.random() < 0.7 else {}))
    clip = {"type": "video_high", "steps": 40, "frames": 17, "width": 64, "height": 64}
    solver = {"solver": "unipc" if kind == 2 else "dpm++"}
    references = {"reference_mode": "start", "start_reference": REFERENCE} if kind == 0 else {}
    return VideoJob(**fields, **clip, **solver, **references)


def run_job(
    nursery: Nursery, job: Job, result: Result, numbers: random.Random, *, kills: int, interval_s: float
) -> None:
    """Kill a job's attempts so often, let it end, and compare it with an undisturbed run."""
    twin = job.model_copy(update={"id": f"{job.id}-undisturbed"})
    for each in (job, twin):
        nursery.ledger.register(each, priority=6)
    undisturbed = nursery.attempt(twin.id, interval_s=0)
    result.steps += undisturbed.total
    before: Attempt | None = None
    cut_off = False
    while True:
        reached = before.steps[-1][0] if before else 0
        kill_at = numbers.randint(min(reached + 1, undisturbed.total), undisturbed.total) if kills else None
        attempt = nursery.attempt(job.id, interval_s=interval_s, kill_at=kill_at)
        first = attempt.steps[0][0]
        if before is not None:
            judge(result, before, first, interval_s=interval_s, cut_off=cut_off)
        if attempt.status == 0:
            check_end(nursery, job, twin, result, resumed_from=first if before else 0, cut_off=cut_off)
            return
        if attempt.status != -signal.SIGKILL:
            raise RuntimeError(f"an attempt of {job.id} failed")
        kills -= 1
        result.kills += 1
        before = attempt
        cut_off = numbers.random() < CUT_OFF_SHARE and cut_off_newest(nursery, job.id, numbers)
        result.cut_off += cut_off
        nursery.ledger.rescue(record_of(nursery, job.id), counted=False)


def judge(result: Result, killed: Attempt, resumed_from: int, *, interval_s: float, cut_off: bool) -> None:
    """Count what the death of an attempt has cost the next one."""
    result.resumed += resumed_from > 0
    result.started_over += resumed_from == 0
    if cut_off:
        return
    steps, lost_s = killed.lost(resumed_from)
    result.repeated_steps += steps
    result.most_repeated_steps = max(result.most_repeated_steps, steps)
    result.most_lost_s = round(max(result.most_lost_s, lost_s), 3)
    writes = [saved - copied for copied, saved in zip(killed.copied, killed.saved, strict=False)]
    result.slowest_write_s = round(max([result.slowest_write_s, *writes]), 3)
    result.late += lost_s > killed.allowance_s(interval_s)


def cut_off_newest(nursery: Nursery, job_id: str, numbers: random.Random) -> bool:
    """Cut the newest checkpoint of a job off, and remove older ones. Returns whether there was one."""
    folder = checkpoints_folder(job_id)
    names = sorted(nursery.store.folders(folder), key=fence_of)
    for older in names[:-1]:
        nursery.store.delete_folder(f"{folder}/{older}")
    if not names:
        return False
    path = nursery.store.root / checkpoint_key(job_id, names[-1])
    if not path.exists():
        return False
    os.truncate(path, numbers.randrange(path.stat().st_size))
    return True


def check_end(
    nursery: Nursery, job: Job, twin: Job, result: Result, *, resumed_from: int, cut_off: bool
) -> None:
    """Compare the files of a job with those of its undisturbed twin, and what its metadata says."""
    one, other = (record_of(nursery, each.id).outcome for each in (job, twin))
    assert one is not None
    assert other is not None
    keys = [
        [key for asset in outcome.assets for key in (asset.key, asset.thumbnail_key) if key]
        for outcome in (one, other)
    ]
    result.different += len(keys[0]) != len(keys[1])
    for key, twin_key in zip(*keys, strict=False):
        result.different += nursery.store.get(key) != nursery.store.get(twin_key)
    result.unreported += one.metadata.get("resumed_from_step", 0) != resumed_from
    result.unreported += ("resume_refused" in one.metadata) != cut_off


def record_of(nursery: Nursery, job_id: str) -> Record:
    """The record of a job."""
    record = nursery.ledger.get(job_id)
    assert record is not None
    return record


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--interval", type=float, default=0.2, help="OURVIDZ_CHECKPOINT_S, in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where data and logs are kept; default is nowhere")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        result = run(folder, kills=arguments.kills, interval_s=arguments.interval, seed=arguments.seed)
    if arguments.json:
        print(json.dumps(asdict(result)))
    else:
        for name, value in asdict(result).items():
            print(f"{name:20} {value}")
    if not result.kept:
        print_note("A promise was broken: see `different`, `late`, `unreported` and `left`.")
    return 0 if result.kept else 1


if __name__ == "__main__":
    sys.exit(main())
