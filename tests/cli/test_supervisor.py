"""The supervisor, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ourvidz.cli.supervisor import BACKOFF_RESET_S, MAX_BACKOFF_S, ProcessSpec, Supervisor, next_backoff_s

pytestmark = pytest.mark.system

DEADLINE_S = 20.0
SLEEPING = "import time; print('up', flush=True); time.sleep(600)"
IGNORES_SIGTERM = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True)\n"
    "time.sleep(600)"
)


def wait_until(condition: Callable[[], object], reason: str = "it did not happen") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, reason
        time.sleep(0.02)


def has_exited(pid: int) -> bool:
    """Whether a process has exited; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def kill_now() -> threading.Event:
    return threading.Event()


@pytest.fixture
def supervisor(notices: list[str], kill_now: threading.Event) -> Iterator[Supervisor]:
    supervisor = Supervisor(notices.append, kill_now)
    yield supervisor
    supervisor.kill_all()


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ProcessSpec]:
    def make(code: str, name: str = "child", env: dict[str, str] | None = None) -> ProcessSpec:
        environment = {**os.environ, **(env or {})}
        return ProcessSpec(name, (sys.executable, "-c", code), environment, tmp_path / f"{name}.log")

    return make


def is_up(spec: ProcessSpec) -> bool:
    return spec.log.exists() and "up" in spec.log.read_text()


def test_the_back_off_doubles_up_to_ten_seconds_and_resets_after_thirty_seconds() -> None:
    """A crash loop must not load the machine, and one crash a day must not cost ten seconds."""
    backoffs = [0.0]
    for _ in range(7):
        backoffs.append(next_backoff_s(backoffs[-1], ran_s=1))
    assert backoffs[1:] == [0.5, 1, 2, 4, 8, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert next_backoff_s(MAX_BACKOFF_S, ran_s=BACKOFF_RESET_S) == 0.5


def test_a_process_that_ends_is_restarted(
    supervisor: Supervisor, spec: Callable[..., ProcessSpec], notices: list[str]
) -> None:
    """A killed worker comes back without an operator, and the notice names its log."""
    supervisor.start(spec(SLEEPING))
    first = supervisor.pids()["child"]
    os.kill(first, signal.SIGKILL)

    def restarted() -> bool:
        supervisor.tick()
        return supervisor.pids().get("child", first) != first

    wait_until(restarted, "it was not restarted")
    assert "killed by signal 9" in notices[0]
    assert "child.log" in notices[0]


BEATING = (
    "import subprocess, sys, time\n"
    "from pathlib import Path\n"
    "from ourvidz.liveness.beats import start_beating\n"
    "start_beating(Path(sys.argv[1]), sys.argv[2])\n"
    "if sys.argv[2] == 'process':\n"
    "    child = subprocess.Popen([sys.executable, '-c', sys.argv[3], sys.argv[1], 'child'])\n"
    "    print('up', child.pid, flush=True)\n"
    "time.sleep(600)"
)
"""A process, and a child of it, that show that they are alive."""


def test_a_process_whose_child_hangs_is_restarted(
    supervisor: Supervisor, tmp_path: Path, notices: list[str]
) -> None:
    """A frozen pool child exists, and its parent answers: nobody else would notice."""
    beats, log = tmp_path / "beats", tmp_path / "log"
    argv = (sys.executable, "-c", BEATING, str(beats), "process", BEATING)
    supervisor.start(ProcessSpec("worker", argv, dict(os.environ), log, beats=beats, hang_s=3.0))

    def both_beat() -> bool:
        supervisor.tick()
        return len(list(beats.iterdir())) == 2

    wait_until(both_beat, "they did not beat")
    process, child = supervisor.pids()["worker"], int(log.read_text().split()[1])
    os.kill(child, signal.SIGSTOP)

    def restarted() -> bool:
        supervisor.tick()
        return supervisor.pids().get("worker", process) != process

    wait_until(restarted, "it was not restarted")
    assert has_exited(process)
    wait_until(lambda: has_exited(child), "the frozen child still exists")
    assert "worker hangs (child has been silent for 3 s) and was killed" in notices[0]


def test_a_process_that_always_fails_is_restarted_without_limit(
    supervisor: Supervisor, spec: Callable[..., ProcessSpec], notices: list[str]
) -> None:
    """After an hour without Redis the workers must still come back."""
    supervisor.start(spec("import sys; sys.exit(3)"))

    def failed_twice() -> bool:
        supervisor.tick()
        return len(notices) >= 2

    wait_until(failed_twice)
    assert "exit status 3" in notices[1]
    assert "in 1 s" in notices[1]


def test_a_failed_restart_is_tried_again_later(
    supervisor: Supervisor, tmp_path: Path, notices: list[str]
) -> None:
    """A binary that is missing for a moment, during an update, must not end the supervisor."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o700)
    supervisor.start(ProcessSpec("child", (str(program),), dict(os.environ), tmp_path / "log"))
    program.unlink()

    def restart_failed() -> bool:
        supervisor.tick()
        return any("cannot be started" in line for line in notices)

    wait_until(restart_failed)


def test_stop_returns_after_the_first_signal_that_works(
    supervisor: Supervisor, spec: Callable[..., ProcessSpec], notices: list[str]
) -> None:
    """A process that exits on SIGTERM gets no further signal and is not restarted."""
    child = spec(SLEEPING)
    supervisor.start(child)
    wait_until(lambda: is_up(child))
    started = time.monotonic()
    supervisor.stop(["child"], [(signal.SIGTERM, 60.0), (signal.SIGKILL, 60.0)])
    assert time.monotonic() - started < 30
    supervisor.tick()
    assert supervisor.pids() == {}
    assert notices == []


def test_a_process_that_ignores_the_signals_is_killed(
    supervisor: Supervisor, spec: Callable[..., ProcessSpec]
) -> None:
    """Stopping always ends the process."""
    child = spec(IGNORES_SIGTERM)
    supervisor.start(child)
    wait_until(lambda: is_up(child))
    supervisor.stop(["child"], [(signal.SIGTERM, 0.1)])
    assert supervisor.pids() == {}


def test_an_immediate_stop_waits_for_nothing(
    supervisor: Supervisor, spec: Callable[..., ProcessSpec], kill_now: threading.Event
) -> None:
    """This is what a second Ctrl-C asks for."""
    child = spec(IGNORES_SIGTERM)
    supervisor.start(child)
    wait_until(lambda: is_up(child))
    kill_now.set()
    started = time.monotonic()
    supervisor.stop(["child"], [(signal.SIGTERM, 60.0), (signal.SIGQUIT, 60.0)])
    assert time.monotonic() - started < 30


def test_killing_a_process_kills_its_children(
    supervisor: Supervisor, spec: Callable[..., ProcessSpec]
) -> None:
    """A pool process must not survive its worker and keep the GPU."""
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPING!r}], stdout=subprocess.DEVNULL)\n"
        "print('up', child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = spec(code)
    supervisor.start(parent)
    wait_until(lambda: is_up(parent))
    grandchild = int(parent.log.read_text().split()[1])
    supervisor.kill_all()
    wait_until(lambda: has_exited(grandchild), "the grandchild still runs")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_a_supervisor_that_is_killed_leaves_no_orphans(tmp_path: Path) -> None:
    """`kill -9` of `ourvidz up` must not leave a server that writes the same files as the next one."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from ourvidz.cli.supervisor import ProcessSpec, Supervisor\n"
        "supervisor = Supervisor(print)\n"
        f"supervisor.start(ProcessSpec('child', (sys.executable, '-c', {SLEEPING!r}), dict(os.environ),"
        " Path(sys.argv[1])))\n"
        "print(supervisor.pids()['child'], flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not has_exited(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: has_exited(child), "the child still runs")
