"""Stop signals of `ourvidz up`."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from ourvidz.cli import up


@pytest.mark.parametrize("started_with", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_closed_terminal_stops_everything_in_order_unless_started_with_nohup(
    monkeypatch: pytest.MonkeyPatch, started_with: signal.Handlers
) -> None:
    """It would be killed, and its processes with it, workers in the middle of their jobs."""
    monkeypatch.setattr(up, "_leave_terminal", lambda: None)
    stop, kill_now = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGHUP, started_with)
    try:
        with up._handle_signals(stop, kill_now):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop.is_set() == (started_with is signal.SIG_DFL)
    assert not kill_now.is_set()


def test_what_is_written_after_the_terminal_was_closed_raises_nothing() -> None:
    """The stop prints what it does."""
    program = "; ".join(
        (
            "import sys",
            "from ourvidz.cli import up",
            "sys.stdin.readline()",
            "up._leave_terminal()",
            "print('stopping', flush=True)",
        )
    )
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        (sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=end, stderr=subprocess.PIPE
    )
    os.close(end)
    os.close(terminal)
    _, errors = process.communicate(b"\n", timeout=30)
    assert process.returncode == 0, errors
