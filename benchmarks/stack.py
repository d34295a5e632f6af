"""Runs `ourvidz up` for a benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WITHOUT_LIMITS = {
    "OURVIDZ_LIMIT_SUBMIT_KEY": "none",
    "OURVIDZ_LIMIT_SUBMIT_USER": "none",
    "OURVIDZ_LIMIT_SYNC_KEY": "none",
    "OURVIDZ_LIMIT_SYNC_USER": "none",
    "OURVIDZ_LIMIT_READ": "none",
    "OURVIDZ_LIMIT_ADDRESS": "none",
    "OURVIDZ_MAX_STREAMS": "1000000",
    "OURVIDZ_MAX_USER_QUEUED": "0",
    "OURVIDZ_MAX_QUEUE_DEPTH": "0",
}
"""Variables for a system that one caller loads as thousands would."""


@contextmanager
def running_stack(folder: Path, *, workers: str, port: int = 0, **variables: str) -> Iterator[dict[str, Any]]:
    """Run `ourvidz up` with these workers and variables, and stop it afterwards; yields its ready line, with
    its process id as `up`."""
    env = os.environ | {"PYTHONPATH": str(Path.cwd()), **WITHOUT_LIMITS, **variables}
    up = ("up", "--state-dir", str(folder), "--port", str(port), "--no-flower", "--workers", workers)
    command = [sys.executable, "-m", "ourvidz.cli.main", *up]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield {**json.loads(process.stdout.readline()), "up": process.pid}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def running_receiver() -> Iterator[str]:
    """Run a callback receiver in a process of its own, and stop it afterwards; yields its URL."""
    command = [sys.executable, "-m", "benchmarks.receiver"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)
