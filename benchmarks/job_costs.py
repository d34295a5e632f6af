"""What one job costs in a running stack: time by stage, processor time by process, requests and fsyncs.

A job goes over HTTP, through a null pipeline, to two signed callbacks delivered to a receiver that is a
process of its own. Neither this process nor the receiver is counted.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
import requests

from benchmarks.processes import StackProcesses, differences
from benchmarks.results import Figures, percentiles
from benchmarks.server_load import OTHER, CommandTrace, server_load

CLIENTS = 8
"""Threads that submit jobs at the same time, each on a connection of its own."""
PROBE_PAUSE_S = 0.01
"""Pause before a single job, in which the worker finishes with the one before."""
SETTLE_S = 0.3
"""Pause after the last callback, in which it is recorded as delivered and its message acknowledged."""


class JobCosts:
    """Measures jobs in a running stack. ready: its ready line; receiver: the URL of the callback receiver."""

    def __init__(self, ready: dict[str, Any], receiver: str) -> None:
        from ourvidz.ledger.store import Ledger

        self._shim, self._receiver = ready["shim"], receiver
        self._redis_url = ready["redis"]
        self._server = redis.Redis.from_url(self._redis_url)
        self._ledger = Ledger(self._redis_url)
        self._processes = StackProcesses(ready["up"], ready["pids"])
        self._http = threading.local()
        self._submitted = 0

    def close(self) -> None:
        """Close the connections to the server."""
        self._server.close()
        self._ledger.close()

    def warm_up(self, jobs: int) -> None:
        """Run some jobs that are not measured."""
        self._run_at_once(jobs)

    def latencies(self, probes: int) -> Figures:
        """Run single jobs on the idle worker: milliseconds from one stage to the next, p50 and p99.

        `submit to start` and `submit to callback` begin when the request is sent; `accept` ends with the 202,
        `run` is from the claim to the commit, `callback` from the commit to the arrival.
        """
        stages: dict[str, list[float]] = {}
        for _ in range(probes):
            time.sleep(PROBE_PAUSE_S)
            submitted_at = time.time()
            job_id = self._submit()
            accepted_at = time.time()
            self._submitted += 1
            self._wait_for_callbacks()
            arrived_at = self._arrivals(job_id)["completed"]
            record = self._ledger.get(job_id)
            assert record is not None
            assert record.claimed_at is not None
            assert record.finished_at is not None
            for stage, begin, end in (
                ("submit to start", submitted_at, record.claimed_at),
                ("accept", submitted_at, accepted_at),
                ("run", record.claimed_at, record.finished_at),
                ("callback", record.finished_at, arrived_at),
                ("submit to callback", submitted_at, arrived_at),
            ):
                stages.setdefault(stage, []).append((end - begin) * 1000)
        figures = {}
        for stage, values in stages.items():
            figures[f"{stage}: p50 ms"], figures[f"{stage}: p99 ms"] = percentiles(values)
        return figures

    def throughput(self, jobs: int) -> Figures:
        """Run jobs that are all submitted at once: jobs a second, and what a job costs."""
        processor, load = self._processes.processor_s(), server_load(self._server)
        started = time.perf_counter()
        self._run_at_once(jobs)
        seconds = time.perf_counter() - started
        time.sleep(SETTLE_S)
        roles = differences(processor, self._processes.processor_s())
        per_job = {name: total / jobs for name, total in differences(load, server_load(self._server)).items()}
        return {
            "jobs/s": jobs / seconds,
            "processor time a job: total ms": sum(roles.values()) * 1000 / jobs,
            **{
                f"processor time a job: {role} ms": used * 1000 / jobs
                for role, used in sorted(roles.items(), key=lambda role: -role[1])
            },
            "server: round trips a job": per_job["round_trips"],
            **({"server: fsyncs a job": per_job["fsyncs"]} if "fsyncs" in per_job else {}),
            "server: append-only file bytes a job": per_job["aof_bytes"],
            "server: received bytes a job": per_job["received_bytes"],
            "server: sent bytes a job": per_job["sent_bytes"],
            "server: memory bytes a finished job": per_job["memory_bytes"],
        }

    def commands(self, jobs: int) -> Figures:
        """Run jobs that are all submitted at once: the number of commands a job by process and command."""
        ports = self._processes.role_of_port()
        trace = CommandTrace()
        with trace.recording(self._redis_url):
            self._run_at_once(jobs)
            time.sleep(SETTLE_S)
        ports |= self._processes.role_of_port()
        counts = trace.by_role(lambda port: ports.get(port, OTHER))
        return {
            f"commands a job: {role}, {command}": count / jobs
            for (role, command), count in sorted(counts.items(), key=lambda entry: (entry[0][0], -entry[1]))
            if count / jobs >= 0.05
        }

    def idle(self, seconds: float) -> Figures:
        """Do nothing for a while: what the stack costs without jobs, a second."""
        processor, load = self._processes.processor_s(), server_load(self._server)
        time.sleep(seconds)
        used = sum(differences(processor, self._processes.processor_s()).values())
        trips = differences(load, server_load(self._server))["round_trips"]
        return {
            "idle: processor time ms/s": used * 1000 / seconds,
            "idle: server round trips/s": trips / seconds,
        }

    def memory(self) -> Figures:
        """MiB of memory of each process: PSS where the system has it."""
        roles = self._processes.memory_mib()
        figures = {f"memory: {role} MiB": size for role, size in sorted(roles.items(), key=lambda r: -r[1])}
        return {"memory: total MiB": sum(roles.values()), **figures}

    def _run_at_once(self, jobs: int) -> None:
        """Submit jobs from `CLIENTS` threads, and wait for all their callbacks."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for submission in [pool.submit(self._submit) for _ in range(jobs)]:
                submission.result()
        self._submitted += jobs
        self._wait_for_callbacks()

    def _submit(self) -> str:
        """Submit the smallest image job over HTTP, and return its id. Fails unless it is accepted (202)."""
        job_id = f"bench-{time.time_ns()}-{threading.get_ident()}"
        if not hasattr(self._http, "session"):
            self._http.session = requests.Session()
        config = {"steps": 1, "seed": 1, "width": 64, "height": 64}
        job = {"id": job_id, "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "bench"}
        answer = self._http.session.post(f"{self._shim}/jobs", json={**job, "config": config}, timeout=60)
        assert answer.status_code == 202, answer.text
        return job_id

    def _wait_for_callbacks(self) -> None:
        """Wait until the terminal callbacks of all submitted jobs have arrived."""
        requests.get(f"{self._receiver}/wait/{self._submitted}", timeout=120).raise_for_status()

    def _arrivals(self, job_id: str) -> dict[str, float]:
        """The arrival of each callback of a job: status → Unix seconds."""
        arrivals: dict[str, float] = requests.get(f"{self._receiver}/received/{job_id}", timeout=60).json()
        return arrivals
