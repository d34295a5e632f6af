"""Steady load for a long time: does anything grow?

    python -m campaigns.soak [--minutes 60] [--baseline 10] [--folder DIR] [--json]

A stack with a retention of one minute runs a mixed load: images, cancelled jobs, repeated submissions,
followers of event streams, callers that delete their files, and a receiver that fails every tenth delivery.
Every ten seconds the memory, descriptors and threads of each process, keys, bytes and clients of the Redis
server and the stored files are measured. The medians of the last minutes are compared with those around
minute `--baseline`; what grew by more than 3 % is marked, and the exit status is 1. So it is when fewer jobs
were submitted at the end: a load that dries up proves nothing.

`--folder` keeps every sample as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import redis
import requests

from campaigns.receiver import UnreliableReceiver
from campaigns.stack import Stack
from ourvidz.cli.console import print_note
from ourvidz.cli.shim import Shim

BUCKET = "workspace-temp"
"""Where the files of `sdxl_image_fast` jobs are stored."""
SAMPLE_S = 10.0
WINDOW_S = 120.0
"""Samples within this time are summarised by their median."""
CLIENTS = 3
JOBS_PER_S = 4.0
"""Submissions a second, of all clients together."""
RETENTION_S = 60
DELETE_AFTER_S = 90.0
"""A caller deletes the files of a job this long after it was submitted: its record has expired by then."""
TOLERANCE = 0.03
SLOWER = 0.25
"""The rate of submissions may fall by this share: the machine may have other work too."""
FAILING = 0.1
SMALL = {"descriptors": 3, "threads": 2, "clients": 5, "keys": 100, "files": 30}
"""Growth of a count up to this number is no growth. What is counted belongs to the jobs of one moment, and to
pools of a fixed size (the io worker's 16 threads, each with its connections), which open as many as the
busiest moment so far needed. What jobs leave behind would be thousands after an hour."""
RATE = "jobs a minute"
OF_RECENT_JOBS = frozenset({"server keys", "server bytes", "stored files"})
"""What the jobs of the last minute and a half hold: it is compared for each job a minute, as the rate differs
with the other work of the machine. What ended jobs left behind would be thousands of times as much."""


@dataclass(frozen=True, slots=True)
class Growth:
    """A measured quantity at the baseline and at the end."""

    quantity: str
    before: float
    after: float
    rate_growth: float = 1.0
    """The rate of jobs at the end divided by that at the baseline, for quantities that follow it."""

    @property
    def share(self) -> float:
        """Growth as a share of the value before, at the same rate of jobs."""
        after = self.after / self.rate_growth
        return (after - self.before) / self.before if self.before else float(after > 0)

    @property
    def flat(self) -> bool:
        """Whether the quantity did not grow, and the rate of jobs did not fall, within the tolerance."""
        if self.quantity == RATE:
            return self.share >= -SLOWER
        small = SMALL.get(self.quantity.rpartition(" ")[2], 0)
        return self.share <= TOLERANCE or self.after - self.before <= small


class Load:
    """Clients that submit, cancel, repeat and follow jobs at a steady rate until they are stopped, and delete
    the files of their earlier ones. A followed job must be completed."""

    def __init__(self, shim: str, seed: int) -> None:
        self.submitted = 0
        self._shim = shim
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._pool.submit(self._run, number) for number in range(CLIENTS)]

    def stop(self) -> None:
        """Stop the clients; raises what one of them raised."""
        self._stop.set()
        for client in self._clients:
            client.result()
        self._pool.shutdown()

    def raise_failures(self) -> None:
        """Raise what a client raised that has ended early."""
        for client in self._clients:
            if client.done():
                client.result()

    def _run(self, number: int) -> None:
        session, client = requests.Session(), Shim(self._shim, None)
        stored: deque[tuple[float, str]] = deque()
        count = 0
        while not self._stop.wait(CLIENTS / JOBS_PER_S):
            job_id, user = f"soak-{number}-{count}", f"user-{count % 50}"
            stored.append((time.monotonic(), f"{BUCKET}/{user}/{job_id}"))
            document = {
                "id": job_id,
                "type": "sdxl_image_fast",
                "prompt": "a lake between two hills",
                "user_id": user,
                "config": {"width": 64, "height": 64, "steps": self._random.choice((1, 3, 6))},
            }
            session.post(f"{self._shim}/jobs", json=document, timeout=30).raise_for_status()
            count += 1
            self.submitted += 1
            what = count % 10
            if what == 0:
                session.post(f"{self._shim}/jobs/{job_id}/cancel", timeout=30)
            elif what == 1:
                session.post(f"{self._shim}/jobs", json=document, timeout=30).raise_for_status()
            elif what == 2:
                list(client.events(job_id))
                if (status := client.job(job_id)["status"]) != "completed":
                    raise AssertionError(f"{job_id} is {status}")
            while stored and stored[0][0] < time.monotonic() - DELETE_AFTER_S:
                session.delete(f"{self._shim}/assets/{stored.popleft()[1]}", timeout=30).raise_for_status()


def measure(stack: Stack) -> dict[str, float]:
    """One sample: quantity → value. Memory is the resident set size, in bytes: the proportional one changes
    with other processes of this machine that use the same libraries."""
    sample: dict[str, float] = {}
    for name in ("web", "io", "keeper", "sdxl", "child"):
        process = stack.process(name)
        if process is None:
            continue
        try:
            with process.oneshot():
                sample[f"{name} memory"] = process.memory_info().rss
                sample[f"{name} descriptors"] = process.num_fds()
                sample[f"{name} threads"] = process.num_threads()
        except psutil.NoSuchProcess:
            continue
    with redis.Redis.from_url(stack.server.url) as client:
        sample["server keys"] = sum(database["keys"] for database in client.info("keyspace").values())
        sample["server bytes"] = client.info("memory")["used_memory_dataset"]
        sample["server clients"] = client.info("clients")["connected_clients"]
    files = [name for _, _, names in os.walk(stack.assets) for name in names]
    sample["stored files"] = len(files)
    sample["temporary files"] = sum(name.startswith("~") for name in files)
    return sample


def run(folder: Path, *, minutes: float, baseline: float, samples: Any = None) -> list[Growth]:
    """Run the load, and compare the end with minute `baseline`. `samples` is a text file to append to."""
    taken: list[tuple[float, dict[str, float]]] = []
    with (
        UnreliableReceiver(failing=FAILING, hang_s=1, seed=1) as receiver,
        Stack(folder, receiver, OURVIDZ_RETENTION_S=str(RETENTION_S)) as stack,
    ):
        load = Load(stack.shim, seed=1)
        started, last = time.monotonic(), (0.0, 0)
        while (elapsed := time.monotonic() - started) < minutes * 60:
            load.raise_failures()
            submitted = load.submitted
            taken.append((elapsed, measure(stack)))
            if len(taken) > 1:
                taken[-1][1][RATE] = 60 * (submitted - last[1]) / (elapsed - last[0])
            last = elapsed, submitted
            if samples is not None:
                print(json.dumps({"seconds": round(elapsed, 1), **taken[-1][1]}), file=samples, flush=True)
            time.sleep(SAMPLE_S)
        load.stop()
        print_note(f"{load.submitted} jobs in {minutes:g} minutes")
    return compare(taken, minutes=minutes, baseline=baseline)


def compare(taken: list[tuple[float, dict[str, float]]], *, minutes: float, baseline: float) -> list[Growth]:
    """Compare the end of a run of so many minutes with minute `baseline`. `taken`: seconds and sample."""
    window_s = min(WINDOW_S, (minutes - baseline) * 30)
    end = minutes * 60
    before = _medians(taken, baseline * 60 - window_s / 2, baseline * 60 + window_s / 2)
    after = _medians(taken, end - window_s, end)
    rate_growth = after[RATE] / before[RATE] if before.get(RATE) and after.get(RATE) else 1.0
    return [
        Growth(name, before[name], after[name], rate_growth if name in OF_RECENT_JOBS else 1.0)
        for name in sorted(before.keys() & after.keys())
    ]


def read_samples(file: Path) -> list[tuple[float, dict[str, float]]]:
    """The samples that an earlier run has kept."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(row.pop("seconds"), row) for row in rows]


def _medians(taken: list[tuple[float, dict[str, float]]], start: float, end: float) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for elapsed, sample in taken:
        if start <= elapsed <= end:
            for name, value in sample.items():
                values[name].append(value)
    return {name: statistics.median(one) for name, one in values.items()}


def print_table(growths: list[Growth]) -> None:
    """Print one line for each quantity."""
    print(f"{'quantity':20}{'before':>14}{'after':>14}{'growth':>9}")
    for growth in growths:
        mark = "" if growth.flat else "  SLOWER" if growth.quantity == RATE else "  GROWS"
        print(f"{growth.quantity:20}{growth.before:>14.0f}{growth.after:>14.0f}{growth.share:>9.1%}{mark}")


def main() -> None:
    """Run the campaign and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--baseline", type=float, default=10.0, help="minute that the end is compared with")
    parser.add_argument("--folder", type=Path, help="where every sample is kept")
    parser.add_argument("--samples", type=Path, help="compare the samples in this file again; runs nothing")
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON document")
    arguments = parser.parse_args()
    if arguments.samples is not None:
        taken = read_samples(arguments.samples)
        growths = compare(taken, minutes=arguments.minutes, baseline=arguments.baseline)
    else:
        growths = _run_and_keep(arguments)
    if arguments.json:
        print(json.dumps([asdict(growth) for growth in growths]))
    else:
        print_table(growths)
    sys.exit(0 if all(growth.flat for growth in growths) else 1)


def _run_and_keep(arguments: argparse.Namespace) -> list[Growth]:
    """Run the load, and keep every sample in the folder of the arguments."""
    with tempfile.TemporaryDirectory(prefix="ourvidz-soak-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "samples.jsonl").open("a") as samples:
            return run(
                Path(temporary) / "state",
                minutes=arguments.minutes,
                baseline=arguments.baseline,
                samples=samples,
            )


if __name__ == "__main__":
    main()
