"""What the job system costs beside the model, compared with plain queues.

    python -m benchmarks.control_plane [--rounds 3] [--label NAME] [--output FILE] [--against FILE]

A job of OurVidz includes HTTP, validation, record, claim, lease, a null pipeline, a stored image with its
thumbnail, the commit and two delivered, signed callbacks; the peers run a no-op and deliver nothing. All use
the same Redis server: append-only file, `appendfsync always`. Rounds are interleaved; figures are medians.

Before and after a change, on a loaded machine too (compare processor time and counts, not jobs/s):

    python -m benchmarks.control_plane --no-peers --label before --output before.json
    python -m benchmarks.control_plane --no-peers --label after --against before.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import redis

from benchmarks.job_costs import CLIENTS, JobCosts
from benchmarks.results import (
    Figures,
    Run,
    comparison_table,
    figures_table,
    medians,
    percentiles,
    systems_table,
)
from benchmarks.stack import running_receiver, running_stack
from ourvidz.cli.console import print_note

OURS = "OurVidz"
PEERS = {
    "bare Celery": "bare_celery",
    "RQ (SimpleWorker)": "rq_noop",
    "dramatiq": "dramatiq_noop",
    "2 s polling loop": "polling",
}
COMPARED = ("submit to start: p50 ms", "submit to start: p99 ms", "jobs/s")
"""The figures that peers have too."""
WARM_UP_JOBS = 20
IDLE_S = 4.0
"""How long the idle stack is measured."""
WEBHOOK_SECRET = "whsec_b3VydmlkemJlbmNobWFyaw=="


def main() -> None:
    """Measure all systems and print the tables."""
    arguments = _parse()
    rounds: dict[str, list[Figures]] = defaultdict(list)
    print_note("starting the stack, with a null pipeline")
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        running_receiver() as receiver,
        running_stack(
            Path(folder),
            workers="sdxl",
            OURVIDZ_MODELS="benchmarks.null_models:build",
            OURVIDZ_CALLBACK_URL=f"{receiver}/callback",
            JOB_CALLBACK_SECRET=secrets.token_hex(16),
            OURVIDZ_WEBHOOK_SECRET=WEBHOOK_SECRET,
        ) as ready,
        closing(JobCosts(ready, receiver)) as ours,
    ):
        ours.warm_up(WARM_UP_JOBS)
        for number in range(1, arguments.rounds + 1):
            print_note(f"round {number} of {arguments.rounds}: {OURS}")
            rounds[OURS].append(ours.latencies(arguments.probes) | ours.throughput(arguments.jobs))
            for name, module in PEERS.items() if arguments.peers else ():
                print_note(f"round {number} of {arguments.rounds}: {name}")
                probes = 3 if module == "polling" else arguments.probes
                rounds[name].append(measure_peer(name, module, probes, arguments.jobs, ready["redis"]))
        print_note("commands, idle costs, memory")
        rounds[OURS].append(ours.commands(arguments.jobs) | ours.idle(IDLE_S) | ours.memory())
    run = Run(
        "control_plane", arguments.label, {system: medians(figures) for system, figures in rounds.items()}
    )
    _report(run, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=300, help="jobs of a round for throughput and costs")
    parser.add_argument("--probes", type=int, default=100, help="single jobs of a round for the latency")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--label", default="now", help="name of this run in tables")
    parser.add_argument("--output", type=Path, help="store the run as JSON")
    parser.add_argument("--against", type=Path, help="compare with a stored run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def _report(run: Run, arguments: argparse.Namespace) -> None:
    if arguments.output:
        run.write(arguments.output)
    if arguments.json:
        print(json.dumps(asdict(run), indent=2))
        return
    if arguments.against:
        print(comparison_table(Run.read(arguments.against), run))
    else:
        print(figures_table(run.systems[OURS]))
    if len(run.systems) > 1:
        print()
        print(systems_table(run.systems, COMPARED))


def measure_peer(name: str, module: str, probes: int, jobs: int, url: str) -> Figures:
    """Measure a no-op on another queue with one worker process. `module` is one of `benchmarks.peers`."""
    os.environ["BENCH_REDIS_URL"] = url
    peer = importlib.import_module(f"benchmarks.peers.{module}")
    client = redis.Redis.from_url(url)
    worker = subprocess.Popen([sys.executable, "-m", f"benchmarks.peers.{module}"], stdout=subprocess.DEVNULL)
    started_key, done_key = f"bench:{module}:started", f"bench:{module}:done"
    client.delete(started_key, done_key)
    try:
        latencies_ms = []
        for number in range(-3, probes):
            submitted_at = time.time()
            peer.enqueue(started_key)
            item: Any = client.blpop([started_key], timeout=60)
            assert item is not None, f"{name}: the worker did not answer"
            if number >= 0:
                latencies_ms.append((float(item[1]) - submitted_at) * 1000)
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda _: peer.enqueue(done_key), range(jobs)))
        _wait_for(lambda: client.llen(done_key) >= jobs)
        rate = jobs / (time.perf_counter() - started)
    finally:
        worker.terminate()
        worker.wait(30)
        client.close()
    return dict(zip(COMPARED, (*percentiles(latencies_ms), rate), strict=True))


def _wait_for(condition: Callable[[], Any], *, every_s: float = 0.01, timeout_s: float = 120.0) -> None:
    """Call `condition` until it returns something true. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError("the benchmark waited too long")
        time.sleep(every_s)


if __name__ == "__main__":
    main()
