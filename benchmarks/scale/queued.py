"""What each operation costs beside many queued jobs, as a ratio to the same operation in an empty system.

A whole `ourvidz up` runs with a null pipeline, and its queue is paused. Costs are processor time of the
server and of the shim, which the load of the machine does not distort as it does durations.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import redis
import requests

from benchmarks.filling import fill, payload
from benchmarks.processes import SERVER, StackProcesses, differences
from benchmarks.results import Figures
from benchmarks.scale.still_broker import StillBroker
from benchmarks.stack import running_receiver, running_stack
from ourvidz.cli.console import print_note

QUEUE = "sdxl_queue"
USER = "user7"
"""The user whose jobs are listed."""
WARM_UP_JOBS = 120
IDLE_S = 10.0
SWEEPS = 5
SLOW_US = 2000
"""Commands that keep the server for longer are listed."""
DRAIN_TIMEOUT_S = 600.0


def measure(jobs: int, *, samples: int, idle_s: float = IDLE_S) -> Figures:
    """Measure all operations in an empty system and with `jobs` queued.

    Every figure is in microseconds or milliseconds of processor time, if it does not say otherwise; the
    ratios come last.
    """
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="ourvidz-scale-"))
        receiver = opened.enter_context(running_receiver())
        ready = opened.enter_context(
            running_stack(
                Path(folder),
                workers="sdxl",
                OURVIDZ_MODELS="benchmarks.null_models:build",
                OURVIDZ_CALLBACK_URL=f"{receiver}/callback",
                OURVIDZ_MAX_QUEUED="10000000",
                JOB_CALLBACK_SECRET=secrets.token_hex(16),
            )
        )
        system = opened.enter_context(closing(QueuedSystem(ready, samples, idle_s)))
        system.warm_up()
        empty = system.costs()
        memory_before = system.server_memory()
        queued_before = system.depth()
        print_note(f"queueing {jobs} jobs")
        started = time.perf_counter()
        # The log is not synchronised meanwhile: only the time that it takes would change.
        with system.unsynchronised():
            fill(ready["redis"], jobs, prefix="filled")
        filled_s = time.perf_counter() - started
        bytes_per_job = (system.server_memory() - memory_before) / max(1, system.depth() - queued_before)
        full = system.costs()
    names = [name for name in empty if name in full]
    return {
        **{f"empty: {name}": value for name, value in empty.items()},
        **{f"{jobs} queued: {name}": value for name, value in full.items()},
        f"{jobs} queued: server memory bytes a job": bytes_per_job,
        "filling: jobs/s": jobs / filled_s,
        **{f"ratio: {name.rpartition(' ')[0]}": full[name] / empty[name] for name in names if empty[name]},
    }


class QueuedSystem:
    """A running stack whose queue is paused."""

    def __init__(self, ready: dict[str, Any], samples: int, idle_s: float) -> None:
        from ourvidz.ledger.store import Ledger

        self._shim = ready["shim"]
        self._samples = samples
        self._idle_s = idle_s
        self._server = redis.Redis.from_url(ready["redis"], decode_responses=True)
        self._ledger = Ledger(ready["redis"])
        self._processes = StackProcesses(ready["up"], ready["pids"])
        self._http = requests.Session()
        self._numbers = count()
        self._post(f"/queues/{QUEUE}/pause")

    def close(self) -> None:
        """Close the connections."""
        self._server.close()
        self._ledger.close()

    def unsynchronised(self) -> Any:
        """A context in which the server's log is not synchronised with the disk."""
        stack = ExitStack()
        self._server.config_set("appendfsync", "no")
        stack.callback(self._server.config_set, "appendfsync", "always")
        return stack

    def warm_up(self) -> None:
        """Make every operation once, and leave nothing queued; lists have a full page of finished jobs."""
        for _ in range(WARM_UP_JOBS):
            self._submit(USER)
        self._read_all()
        self._drain(self.depth())

    def depth(self) -> int:
        """The number of queued jobs."""
        return self._ledger.queue_depth(QUEUE)

    def server_memory(self) -> float:
        """Bytes that the server uses."""
        return float(self._server.info("memory")["used_memory"])

    def costs(self) -> Figures:
        """Measure every operation. Submitted jobs are as many as are run and claimed afterwards."""
        while self._server.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.1)
        self._server.config_set("slowlog-log-slower-than", SLOW_US)
        self._server.slowlog_reset()
        print_note(f"measuring with {self.depth()} queued")
        figures = {
            # Shows how far the machine itself is slower by now.
            **self._cost("reference, SET of one key", lambda: self._server.set("bench:reference", 1)),
            **self._cost("submission", self._submit, 2 * self._samples),
            **self._cost("list of jobs", lambda: self._get("/jobs?limit=50")),
            **self._cost("list of failed jobs", lambda: self._get("/jobs?status=failed&limit=50")),
            **self._cost("list of a user's jobs", lambda: self._get(f"/jobs?user_id={USER}&limit=50")),
            **self._cost("job with its place", lambda: self._get(f"/jobs/{self._last_id}")),
            **self._cost("health", lambda: self._get("/health")),
            **self._cost("metrics", lambda: self._get("/metrics")),
            **self._claims(),
            **self._cost("sweep", self._sweep, SWEEPS),
            **self._idle(),
            **self._drain(self._samples),
        }
        slow = self._server.slowlog_get(1000)
        figures["server: slowest command ms"] = max((entry["duration"] for entry in slow), default=0) / 1000
        for entry in sorted(slow, key=lambda entry: -entry["duration"])[:3]:
            print_note(f"slow: {entry['duration'] / 1000:.1f} ms {str(entry['command'])[:80]}")
        return figures

    def _cost(self, name: str, call: Callable[[], Any], calls: int | None = None) -> Figures:
        """The processor time of one call, of the server and of the shim, and its median duration."""
        calls = calls or self._samples
        before, server = self._processes.processor_s(), self._server_us()
        durations = []
        for _ in range(calls):
            started = time.perf_counter()
            call()
            durations.append(time.perf_counter() - started)
        server_us = (self._server_us() - server) / calls
        used = differences(before, self._processes.processor_s())
        durations.sort()
        figures = {
            f"{name}: server µs": server_us,
            f"{name}: duration p50 ms": durations[calls // 2] * 1000,
        }
        web_ms = used.get("web", 0.0) * 1000 / calls
        return figures | ({f"{name}: shim ms": web_ms} if web_ms > 0.3 else {})

    def _server_us(self) -> float:
        """Microseconds of processor time of the server's main thread."""
        cpu = self._server.info("cpu")
        return 1e6 * (cpu["used_cpu_sys_main_thread"] + cpu["used_cpu_user_main_thread"])

    def _idle(self) -> Figures:
        """The processor time of the whole system while nothing is asked."""
        before = self._processes.processor_s()
        time.sleep(self._idle_s)
        used = differences(before, self._processes.processor_s())
        return {
            "idle: keeper and server ms/s": (used.get("keeper", 0) + used[SERVER]) * 1000 / self._idle_s,
        }

    def _drain(self, jobs: int) -> Figures:
        """Let the worker run jobs, and pause it again: processor time a job, and jobs a second."""
        before = self._processes.processor_s()
        done, started = self._completed(), time.perf_counter()
        self._post(f"/queues/{QUEUE}/resume")
        deadline = started + DRAIN_TIMEOUT_S
        while (completed := self._completed() - done) < jobs:
            assert time.perf_counter() < deadline, "the worker runs no jobs"
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        used = differences(before, self._processes.processor_s())
        self._post(f"/queues/{QUEUE}/pause")
        self._wait_until_idle()
        if not completed:
            return {}
        return {
            "drain: all processes ms a job": sum(used.values()) * 1000 / completed,
            "drain: jobs/s": completed / seconds,
        }

    def _wait_until_idle(self) -> None:
        """Wait until no job runs and no callback is pending."""
        while self._server.zcard("ourvidz:leases") or self._ledger.list_events("pending", 1):
            time.sleep(0.05)

    def _completed(self) -> int:
        return self._ledger.counters().get("jobs.sdxl_image_fast.completed", 0)

    def _submit(self, user: str | None = None) -> None:
        number = next(self._numbers)
        self._last_id = f"measured-{number}"
        self._post("/jobs", payload(self._last_id, user or f"user{number % 100}"))

    def _claims(self) -> Figures:
        """Find, claim and end the next job as a text worker does. Only the ledger is told that the queue is
        open; the worker keeps away from it."""
        self._ledger.set_paused(QUEUE, False)
        try:
            return self._cost("next job, claim and end", self._claim_next)
        finally:
            self._ledger.set_paused(QUEUE, True)

    def _claim_next(self) -> None:
        from ourvidz.errors import InternalError
        from ourvidz.jobs.outcome import Outcome

        record = self._ledger.queued(QUEUE, limit=1)[0]
        token = f"claim-{next(self._numbers)}"
        claim = self._ledger.claim(record.job_id, record.run, worker_id="benchmark", lease_s=60, token=token)
        assert claim is not None
        assert self._ledger.end(claim, outcome=Outcome.failure(InternalError("measured")))

    def _sweep(self) -> None:
        from ourvidz.recovery.sweep import SweepOptions, sweep

        week_s = 7 * 86400.0
        options = SweepOptions(
            interval_s=2, lease_s=10, empty_s=15, unclaimed_s=week_s, retention_s=week_s, enhance_within_s=60
        )
        sweep(self._ledger, StillBroker(), options)

    def _read_all(self) -> None:
        for path in ("/jobs?limit=50", "/jobs?status=failed", "/health", "/metrics"):
            self._get(path)

    def _get(self, path: str) -> None:
        self._http.get(self._shim + path, timeout=60).raise_for_status()

    def _post(self, path: str, body: dict[str, Any] | None = None) -> None:
        self._http.post(self._shim + path, json=body, timeout=60).raise_for_status()
