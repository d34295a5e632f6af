"""Latency and throughput of the job system, compared with plain queues.

    python -m benchmarks.control_plane [--jobs 300] [--probes 100] [--json]

Latency is the time from a caller's submit to the start of its task on an idle warm worker; throughput
counts complete jobs a second. A job of OurVidz includes HTTP, validation, record, claim, lease, a null
pipeline, a stored image with its thumbnail, the commit and two delivered, signed callbacks; the peers run a
no-op and deliver nothing. All use the same Redis server: append-only file, `appendfsync always`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
import requests

from benchmarks.stack import running_stack
from ourvidz.cli.console import print_note

PEERS = {
    "bare Celery": "bare_celery",
    "RQ (SimpleWorker)": "rq_noop",
    "dramatiq": "dramatiq_noop",
    "2 s polling loop": "polling",
}
CLIENTS = 8
"""Threads that submit jobs at the same time."""
WARM_UP_JOBS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """The results of one system: median and 99th percentile of the latency, and complete jobs a second."""

    name: str
    p50_ms: float
    p99_ms: float
    jobs_per_s: float


def main() -> None:
    """Measure all systems and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=300, help="number of jobs for the throughput")
    parser.add_argument("--probes", type=int, default=100, help="number of single jobs for the latency")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    print_note("starting the stack, with a null pipeline")
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        running_stack(Path(folder), workers="sdxl", OURVIDZ_MODELS="benchmarks.null_models:build") as ready,
    ):
        rows = [measure_ours(ready, arguments.probes, arguments.jobs)]
        os.environ["BENCH_REDIS_URL"] = ready["redis"]
        for name, module in PEERS.items():
            print_note(f"measuring {name}")
            probes = 5 if module == "polling" else arguments.probes
            rows.append(measure_peer(name, module, probes, arguments.jobs, ready["redis"]))
    report(rows, as_json=arguments.json)


def measure_ours(ready: dict[str, Any], probes: int, jobs: int) -> Row:
    """Measure the running stack over HTTP, as a caller does. `ready` is its ready line."""
    from ourvidz.ledger.store import Ledger

    ledger = Ledger(ready["redis"])
    http = requests.Session()
    shim = ready["shim"]
    print_note("measuring the latency")
    latencies_ms = []
    for number in range(-WARM_UP_JOBS, probes):
        submitted_at = time.time()
        http.post(f"{shim}/jobs", json=payload(f"probe{number}")).raise_for_status()
        record = wait_for(lambda job_id=f"probe{number}": finished_record(ledger, job_id))
        if number >= 0:
            latencies_ms.append((record.claimed_at - submitted_at) * 1000)
    print_note("measuring the throughput")
    wait_for(lambda: not ledger.list_events("pending", 1))
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda n: submit(shim, f"job{n}"), range(jobs)))
    counter = "jobs.sdxl_image_fast.completed"
    wait_for(lambda: ledger.counters()[counter] == WARM_UP_JOBS + probes + jobs, every_s=0.02)
    wait_for(lambda: not ledger.list_events("pending", 1))
    rate = jobs / (time.perf_counter() - started)
    ledger.close()
    return Row("OurVidz (HTTP … delivered callback)", *percentiles(latencies_ms), rate)


def payload(job_id: str) -> dict[str, Any]:
    """The payload of the smallest image job, with this id: one step, 64x64 px."""
    config = {"steps": 1, "seed": 1, "width": 64, "height": 64}
    return {"id": job_id, "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "bench", "config": config}


def submit(shim: str, job_id: str) -> None:
    """Submit one job over HTTP. Fails unless it is accepted (202)."""
    response = requests.post(f"{shim}/jobs", json=payload(job_id), timeout=60)
    assert response.status_code == 202, response.text


def finished_record(ledger: Any, job_id: str) -> Any:
    """The record of a job that has ended, otherwise None."""
    record = ledger.get(job_id)
    return record if record is not None and record.finished else None


def measure_peer(name: str, module: str, probes: int, jobs: int, url: str) -> Row:
    """Measure a no-op on another queue with one worker process. `module` is one of `benchmarks.peers`."""
    peer = importlib.import_module(f"benchmarks.peers.{module}")
    client = redis.Redis.from_url(url)
    worker = subprocess.Popen([sys.executable, "-m", f"benchmarks.peers.{module}"], stdout=subprocess.DEVNULL)
    try:
        latencies_ms = []
        for number in range(-3, probes):
            submitted_at = time.time()
            peer.enqueue(f"bench:{module}:probe")
            item = client.blpop(f"bench:{module}:probe", timeout=60)
            assert item is not None, f"{name}: the worker did not answer"
            if number >= 0:
                latencies_ms.append((float(item[1]) - submitted_at) * 1000)
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda _: peer.enqueue(f"bench:{module}:done"), range(jobs)))
        wait_for(lambda: client.llen(f"bench:{module}:done") >= jobs, every_s=0.01)
        rate = jobs / (time.perf_counter() - started)
    finally:
        worker.terminate()
        worker.wait(30)
        client.close()
    return Row(name, *percentiles(latencies_ms), rate)


def percentiles(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return statistics.median(values), cuts[98]


def wait_for(condition: Callable[[], Any], *, every_s: float = 0.005, timeout_s: float = 120.0) -> Any:
    """Call `condition` until it returns something true, and return that. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_s)
    raise TimeoutError("the benchmark waited too long")


def report(rows: list[Row], *, as_json: bool) -> None:
    """Print the results, and their ratios to those of OurVidz (the first row)."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    ours = rows[0]
    print(f"{'':38}{'p50 ms':>10}{'p99 ms':>10}{'jobs/s':>10}{'p50 ÷ ours':>12}{'jobs/s ÷ ours':>15}")
    for row in rows:
        ratios = f"{row.p50_ms / ours.p50_ms:>12.2f}{row.jobs_per_s / ours.jobs_per_s:>15.2f}"
        print(f"{row.name:38}{row.p50_ms:>10.1f}{row.p99_ms:>10.1f}{row.jobs_per_s:>10.1f}{ratios}")


if __name__ == "__main__":
    main()
