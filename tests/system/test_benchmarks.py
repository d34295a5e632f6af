"""The short form of the benchmarks that start a full stack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.fleet import __main__ as fleet
from benchmarks.scale import queued

ROOT = Path(__file__).parents[2]


def test_the_costs_of_a_job_are_measured_by_process(tmp_path: Path) -> None:
    """Every role of the stack has its processor time, and the server its round trips."""
    output = tmp_path / "run.json"
    options = ("--no-peers", "--rounds", "1", "--jobs", "8", "--probes", "2", "--output", str(output))
    command = (sys.executable, "-m", "benchmarks.control_plane", *options)
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL)
    figures = json.loads(output.read_text())["systems"]["OurVidz"]
    assert figures["jobs/s"] > 0
    assert figures["server: round trips a job"] > 5
    assert figures["submit to start: p50 ms"] > 0
    assert figures["processor time a job: sdxl child ms"] > 0
    # One to submit, beside what a shim asks by the clock while the few jobs of a short run take their time;
    # three from claim to end, and a report for each quarter of a second of a busy machine.
    assert commands(figures, "web") < 4
    assert commands(figures, "sdxl child") < 9


def commands(figures: dict[str, float], role: str) -> float:
    """The commands that the processes of a role send to the server for each job."""
    return sum(count for name, count in figures.items() if name.startswith(f"commands a job: {role}, "))


def test_operations_are_measured_beside_many_queued_jobs() -> None:
    """Every operation has a ratio of its costs to those in an empty system."""
    figures = queued.measure(60, samples=3, idle_s=1)
    assert figures["60 queued: server memory bytes a job"] > 1000
    for operation in ("submission", "list of jobs", "next job, claim and end", "sweep"):
        assert figures[f"ratio: {operation}: server"] > 0
    assert figures["60 queued: drain: all processes ms a job"] > 0


def test_a_fleet_of_emulated_workers_is_fed() -> None:
    """Two shims and two io processes share the work of eight GPUs."""
    figures = fleet.measure(8, shims=2, senders=2, worker_processes=1, seconds=3)
    assert figures["jobs/s"] > 1
    assert figures["dispatch: p50 ms"] > 0
    assert figures["extrapolated: GPUs fed by 2 cores"] > 8
