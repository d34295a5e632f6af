"""Keeping processes running, with real processes."""

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

from ourvidz.cli.supervisor import LAST_DELAY_S, STEADY_S, Spec, Supervisor, next_delay_s

DEADLINE_S = 20.0
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True)\n"
    "time.sleep(600)"
)


def wait_until(true: Callable[[], object], why: str = "it did not happen") -> None:
    ends = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < ends, why
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def hurry() -> threading.Event:
    return threading.Event()


@pytest.fixture
def supervisor(notices: list[str], hurry: threading.Event) -> Iterator[Supervisor]:
    made = Supervisor(notices.append, hurry)
    yield made
    made.kill()


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Spec]:
    def make(code: str, name: str = "child", env: dict[str, str] | None = None) -> Spec:
        environment = {**os.environ, **(env or {})}
        return Spec(name, (sys.executable, "-c", code), environment, tmp_path / f"{name}.log")

    return make


def is_up(spec: Spec) -> bool:
    return spec.log.exists() and "up" in spec.log.read_text()


def test_the_back_off_doubles_up_to_ten_seconds_and_starts_afresh_after_a_steady_run() -> None:
    """A crash loop must not eat the machine, and one crash a day must not cost ten seconds."""
    delays = [0.0]
    for _ in range(7):
        delays.append(next_delay_s(delays[-1], ran_s=1))
    assert delays[1:] == [0.5, 1, 2, 4, 8, LAST_DELAY_S, LAST_DELAY_S]
    assert next_delay_s(LAST_DELAY_S, ran_s=STEADY_S) == 0.5


def test_a_process_that_dies_is_started_again(
    supervisor: Supervisor, spec: Callable[..., Spec], notices: list[str]
) -> None:
    """The point of supervising: a killed worker comes back without anybody looking."""
    supervisor.start(spec(SLEEPER))
    first = supervisor.pids()["child"]
    os.kill(first, signal.SIGKILL)

    def back() -> bool:
        supervisor.tick()
        return supervisor.pids().get("child", first) != first

    wait_until(back, "it was not started again")
    assert "killed by signal 9" in notices[0]
    assert "child.log" in notices[0], "the operator is told where to look"


def test_a_process_that_dies_again_and_again_is_never_given_up(
    supervisor: Supervisor, spec: Callable[..., Spec], notices: list[str]
) -> None:
    """A broker that is away for an hour must not leave a machine without workers."""
    supervisor.start(spec("import sys; sys.exit(3)"))

    def twice() -> bool:
        supervisor.tick()
        return len(notices) >= 2

    wait_until(twice)
    assert "exit status 3" in notices[1]
    assert "in 1 s" in notices[1]


def test_a_program_that_cannot_be_started_again_is_tried_later(
    supervisor: Supervisor, tmp_path: Path, notices: list[str]
) -> None:
    """A binary that is being replaced must not take the supervisor down."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o700)
    supervisor.start(Spec("child", (str(program),), dict(os.environ), tmp_path / "log"))
    program.unlink()

    def told() -> bool:
        supervisor.tick()
        return any("cannot be started" in line for line in notices)

    wait_until(told)


def test_stopping_ends_with_the_first_signal_that_works(
    supervisor: Supervisor, spec: Callable[..., Spec], notices: list[str]
) -> None:
    """A process that goes on SIGTERM is neither waited for nor killed, nor started again."""
    child = spec(SLEEPER)
    supervisor.start(child)
    wait_until(lambda: is_up(child))
    began = time.monotonic()
    supervisor.stop(["child"], [(signal.SIGTERM, 60.0), (signal.SIGKILL, 60.0)])
    assert time.monotonic() - began < 30
    supervisor.tick()
    assert supervisor.pids() == {}
    assert notices == []


def test_a_process_that_ignores_the_signals_is_killed(
    supervisor: Supervisor, spec: Callable[..., Spec]
) -> None:
    """Stopping always stops."""
    child = spec(STUBBORN)
    supervisor.start(child)
    wait_until(lambda: is_up(child))
    supervisor.stop(["child"], [(signal.SIGTERM, 0.1)])
    assert supervisor.pids() == {}


def test_in_a_hurry_nothing_is_waited_for(
    supervisor: Supervisor, spec: Callable[..., Spec], hurry: threading.Event
) -> None:
    """The second Ctrl-C means now."""
    child = spec(STUBBORN)
    supervisor.start(child)
    wait_until(lambda: is_up(child))
    hurry.set()
    began = time.monotonic()
    supervisor.stop(["child"], [(signal.SIGTERM, 60.0), (signal.SIGQUIT, 60.0)])
    assert time.monotonic() - began < 30


def test_killing_a_process_takes_its_children_along(
    supervisor: Supervisor, spec: Callable[..., Spec]
) -> None:
    """A pool process must not survive its worker and keep the GPU."""
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdout=subprocess.DEVNULL)\n"
        "print('up', child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = spec(code)
    supervisor.start(parent)
    wait_until(lambda: is_up(parent))
    grandchild = int(parent.log.read_text().split()[1])
    supervisor.kill()
    wait_until(lambda: gone(grandchild), "the grandchild lives on")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_supervisor_that_is_killed_leaves_no_orphans(tmp_path: Path) -> None:
    """`kill -9` of `ourvidz up` must not leave a server that writes the same files as the next one."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from ourvidz.cli.supervisor import Spec, Supervisor\n"
        "supervisor = Supervisor(print)\n"
        f"supervisor.start(Spec('child', (sys.executable, '-c', {SLEEPER!r}), dict(os.environ),"
        " Path(sys.argv[1])))\n"
        "print(supervisor.pids()['child'], flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: gone(child), "the child lives on")
