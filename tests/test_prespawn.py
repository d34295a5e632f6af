"""The interpreter that imports libraries before the pool of a worker needs its first child."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import billiard
import psutil
import pytest

from ourvidz import prespawn
from ourvidz.pool import _Child
from ourvidz.settings import set_environment

pytestmark = pytest.mark.system


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    """The waiting interpreter of an sdxl worker without models."""
    monkeypatch.setenv("OURVIDZ_WORKER", "sdxl")
    monkeypatch.setenv("OURVIDZ_MODELS", "benchmarks.null_models:build")
    with prespawn.interpreter():
        yield next(child for child in psutil.Process().children() if "child.main" in child.cmdline()[-1])


def started(code: str) -> _Child:
    """A pool's child that runs this code."""
    child = _Child(target=exec, args=(code,))
    child.start()
    return child


def test_the_first_child_is_the_interpreter_that_waits(interpreter: psutil.Process) -> None:
    """So its libraries are imported while the parent connects."""
    first, second = started("import os; os._exit(7)"), started("import os; os._exit(8)")
    first.join(60)
    second.join(60)
    assert first.pid == interpreter.pid != second.pid
    assert (first.exitcode, second.exitcode) == (7, 8)


def test_a_handler_may_wait_for_a_child_for_which_the_interrupted_call_waits(
    interpreter: psutil.Process,
) -> None:
    """Celery's handlers of a second signal do: the worker would never end."""
    child = started("import time; time.sleep(600)")
    assert child.pid == interpreter.pid
    statuses = []

    def stop(*_: object) -> None:
        interpreter.kill()
        child.join()
        statuses.append(child.exitcode)

    def interrupt(main: int) -> None:
        while sys._current_frames()[main].f_code.co_name not in ("poll", "_try_wait"):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, stop)
    try:
        threading.Thread(target=interrupt, args=(threading.get_ident(),)).start()
        child.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert (statuses, child.exitcode) == ([-signal.SIGKILL], -signal.SIGKILL)


def test_the_first_child_knows_its_descriptors_by_the_parents_numbers(interpreter: psutil.Process) -> None:
    """With each result it names its queue by the number; the parent would never send it a second job."""
    reader, writer = billiard.Pipe()
    child = _Child(target=exec, args=("import os; os._exit(writer.fileno())", {"writer": writer}))
    child.start()
    child.join(60)
    assert (child.pid, child.exitcode) == (interpreter.pid, writer.fileno())
    reader.close()
    writer.close()


def test_a_pool_spawns_its_child_where_a_descriptor_cannot_be_handed_over(
    interpreter: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process with hundreds of open files has numbers that the interpreter's libraries may use."""
    monkeypatch.setattr(prespawn, "RESERVED_FDS", 3)
    child = started("import os; os._exit(7)")
    child.join(60)
    assert child.pid != interpreter.pid
    assert child.exitcode == 7
    assert not interpreter.is_running()


def test_the_first_child_has_the_environment_of_its_start(
    interpreter: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery sets variables for its children after the interpreter was started."""
    monkeypatch.setenv("OURVIDZ_WEBHOOK_SECRET", "0")
    set_environment(OURVIDZ_WEBHOOK_SECRET="9")
    child = started("import os; os._exit(int(os.environ['OURVIDZ_WEBHOOK_SECRET']))")
    child.join(60)
    assert (child.pid, child.exitcode) == (interpreter.pid, 9)


def test_a_first_child_that_is_killed_is_reported_with_the_signal(interpreter: psutil.Process) -> None:
    """The parent tells by it why the child was lost."""
    child = started("import signal; signal.pause()")
    child.terminate()
    child.join(60)
    assert (child.pid, child.exitcode) == (interpreter.pid, -signal.SIGKILL)


def test_a_pool_spawns_its_child_where_the_interpreter_has_ended(interpreter: psutil.Process) -> None:
    """A library that ends its process must not keep the worker from reporting that."""
    interpreter.kill()
    os.waitid(os.P_PID, interpreter.pid, os.WEXITED | os.WNOWAIT)
    child = started("import os; os._exit(7)")
    child.join(60)
    assert child.pid != interpreter.pid
    assert child.exitcode == 7


def test_an_interpreter_that_no_pool_took_ends_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may be refused before it starts a pool."""
    monkeypatch.setenv("OURVIDZ_WORKER", "sdxl")
    with prespawn.interpreter():
        (waiting,) = (child for child in psutil.Process().children() if "child.main" in child.cmdline()[-1])
    assert not waiting.is_running()
