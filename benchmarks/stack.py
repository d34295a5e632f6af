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


@contextmanager
def running_stack(folder: Path, *, workers: str, **variables: str) -> Iterator[dict[str, Any]]:
    """Run `ourvidz up` with these workers and variables; yields its ready line, and stops it afterwards."""
    env = os.environ | {"PYTHONPATH": str(Path.cwd()), **variables}
    up = ("up", "--state-dir", str(folder), "--port", "0", "--no-flower", "--workers", workers)
    command = [sys.executable, "-m", "ourvidz.cli.main", *up]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
