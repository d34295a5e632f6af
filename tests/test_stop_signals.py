"""Signals that stop a process, sent to real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ourvidz.ledger.store import Ledger
from ourvidz.settings import environment
from ourvidz.stop_signals import stop_signals
from tests.web.conftest import free_port, get

pytestmark = pytest.mark.system

DEADLINE_S = 30.0


@pytest.mark.parametrize("started_with", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_process_that_ignores_hangups_goes_on_ignoring_them(started_with: signal.Handlers) -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, started_with)
    try:
        signals = stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signals >= {signal.SIGTERM, signal.SIGINT}
    assert (signal.SIGHUP in signals) == (started_with is signal.SIG_DFL)


@pytest.mark.parametrize("name", ["keeper", "io", "web"])
def test_a_closed_terminal_stops_a_process_in_order(name: str, redis_url: str, tmp_path: Path) -> None:
    """It says that it is offline, gives its duties back and answers who waits, as at SIGTERM."""
    port = free_port()
    env = environment(
        OURVIDZ_REDIS_URL=redis_url,
        OURVIDZ_STATE_DIR=str(tmp_path),
        OURVIDZ_PORTS=str(port),
        PYTHONPATH=str(Path(__file__).parents[1]),
    )
    argv = [sys.executable, "-m", "ourvidz.cli.main", "worker", name]
    process = subprocess.Popen(argv, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    ledger = Ledger(redis_url)
    try:
        if name == "web":
            get(port, "/health/live", process)
        until = time.monotonic() + DEADLINE_S
        while name != "web" and not ledger.workers():
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode in ((-signal.SIGTERM, 0) if name == "web" else (0,)), errors
        assert all(worker.state == "offline" for worker in ledger.workers())
    finally:
        process.kill()
        process.communicate()
        ledger.close()
