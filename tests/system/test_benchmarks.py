"""The short form of the benchmarks that start a full stack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    assert any(name.startswith("commands a job: web, ") for name in figures)
