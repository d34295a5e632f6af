"""What the job system itself costs, beside bare queues, in one run.

    python -m benchmarks.control_plane [--jobs 300] [--probes 100] [--json]

Two questions: how long from a caller's submit to the start of its task on an idle warm worker, and how
many jobs a second go the whole way. Ours goes from HTTP through validation, record, claim, lease, a null
pipeline, a stored picture with its thumbnail and the commit to two delivered, signed callbacks; the peers
run a no-op and deliver nothing. All share one server setup: append-only file, `appendfsync always`.
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

from benchmarks.stack import running

PEERS = {
    "bare Celery": "bare_celery",
    "RQ (SimpleWorker)": "rq_noop",
    "dramatiq": "dramatiq_noop",
    "2 s polling loop": "polling",
}
CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One system's numbers: milliseconds from submit to start, jobs a second over the whole way."""

    name: str
    p50_ms: float
    p99_ms: float
    jobs_per_s: float


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=300, help="jobs for the throughput")
    parser.add_argument("--probes", type=int, default=100, help="single jobs for the latency")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    say("starting the stack, with a null pipeline")
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        running(Path(folder), workers="sdxl", OURVIDZ_MODELS="benchmarks.null_models:build") as ready,
    ):
        rows = [measure_ours(ready, asked.probes, asked.jobs)]
        os.environ["BENCH_REDIS_URL"] = ready["redis"]
        for name, module in PEERS.items():
            say(f"measuring {name}")
            probes = 5 if module == "polling" else asked.probes
            rows.append(measure_peer(name, module, probes, asked.jobs, ready["redis"]))
    report(rows, as_json=asked.json)


def measure_ours(ready: dict[str, Any], probes: int, jobs: int) -> Row:
    """Over HTTP, as a caller sees it."""
    from ourvidz.ledger.store import Ledger

    ledger = Ledger(ready["redis"])
    http = requests.Session()
    shim = ready["shim"]
    say("measuring the latency")
    waits = []
    for number in range(-5, probes):
        asked_at = time.time()
        http.post(f"{shim}/jobs", json=payload(f"probe{number}")).raise_for_status()
        record = until(lambda name=f"probe{number}": finished(ledger, name))
        if number >= 0:
            waits.append((record.claimed_at - asked_at) * 1000)
    say("measuring the throughput")
    until(lambda: not ledger.list_events("pending", 1))
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda n: submit(shim, f"job{n}"), range(jobs)))
    ended = "jobs.sdxl_image_fast.completed"
    until(lambda: ledger.counters()[ended] == 5 + probes + jobs, every_s=0.02)
    until(lambda: not ledger.list_events("pending", 1))
    rate = jobs / (time.perf_counter() - started)
    ledger.close()
    return Row("OurVidz (HTTP … delivered callback)", *percentiles(waits), rate)


def payload(name: str) -> dict[str, Any]:
    """The smallest job there is."""
    config = {"steps": 1, "seed": 1, "width": 64, "height": 64}
    return {"id": name, "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "bench", "config": config}


def submit(shim: str, name: str) -> None:
    """Submit one job and insist on its 202."""
    answer = requests.post(f"{shim}/jobs", json=payload(name), timeout=60)
    assert answer.status_code == 202, answer.text


def finished(ledger: Any, name: str) -> Any:
    """The record once it is finished."""
    record = ledger.get(name)
    return record if record is not None and record.finished else None


def measure_peer(name: str, module: str, probes: int, jobs: int, url: str) -> Row:
    """A no-op on another queue with one worker."""
    peer = importlib.import_module(f"benchmarks.peers.{module}")
    client = redis.Redis.from_url(url)
    worker = subprocess.Popen([sys.executable, "-m", f"benchmarks.peers.{module}"], stdout=subprocess.DEVNULL)
    try:
        waits = []
        for number in range(-3, probes):
            asked_at = time.time()
            peer.enqueue(f"bench:{module}:probe")
            found = client.blpop(f"bench:{module}:probe", timeout=60)
            assert found is not None, f"{name}: the worker did not answer"
            if number >= 0:
                waits.append((float(found[1]) - asked_at) * 1000)
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda _: peer.enqueue(f"bench:{module}:done"), range(jobs)))
        until(lambda: client.llen(f"bench:{module}:done") >= jobs, every_s=0.01)
        rate = jobs / (time.perf_counter() - started)
    finally:
        worker.terminate()
        worker.wait(30)
        client.close()
    return Row(name, *percentiles(waits), rate)


def percentiles(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return statistics.median(values), cuts[98]


def until(ask: Callable[[], Any], *, every_s: float = 0.005, limit_s: float = 120.0) -> Any:
    """Ask until the answer is true."""
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        if answer := ask():
            return answer
        time.sleep(every_s)
    raise TimeoutError("the benchmark waited too long")


def report(rows: list[Row], *, as_json: bool) -> None:
    """Print the numbers and the ratios to ours."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    ours = rows[0]
    print(f"{'':38}{'p50 ms':>10}{'p99 ms':>10}{'jobs/s':>10}{'p50 ÷ ours':>12}{'jobs/s ÷ ours':>15}")
    for row in rows:
        ratios = f"{row.p50_ms / ours.p50_ms:>12.2f}{row.jobs_per_s / ours.jobs_per_s:>15.2f}"
        print(f"{row.name:38}{row.p50_ms:>10.1f}{row.p99_ms:>10.1f}{row.jobs_per_s:>10.1f}{ratios}")


def say(what: str) -> None:
    """What is going on, on standard error."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
