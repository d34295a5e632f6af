"""The fork server: children with what their worker gives them, which end with their worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ourvidz import prespawn
from ourvidz.forkserver import REQUEST_BYTES, ForkedProcess
from ourvidz.pool import _Child
from ourvidz.settings import environment, set_environment

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux", reason="the fork server runs on Linux"),
]

SERVER = """
import os, socket, sys
from ourvidz.forkserver import ForkServer

def run(fd, environment):
    os.environ.update(environment)
    exec(environment["CODE"])
    os._exit(0)

server = ForkServer(socket.socket(fileno=int(sys.argv[1])), run)
server.refuses = sys.argv[2] == "refuse"
while True:
    server.serve({sys.argv[2]})
"""
SWITCH = """served = 0
while True:
    if len(server._children) == 2:
        server.refuses = True"""
"""Refuses from the third request on."""
LIBRARIES = """
import sys
from ourvidz import forkserver_main
forkserver_main.main(int(sys.argv[1]), ['other', 'sdxl'])
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The sockets of the server and of its workers."""
    serves, asks = socket.socketpair(type=socket.SOCK_DGRAM)
    with serves, asks:
        yield serves, asks


@pytest.fixture
def start(sockets: tuple[socket.socket, socket.socket]) -> Iterator[Start]:
    """Start a server that has imported one family, or refuses."""
    servers: list[subprocess.Popen[bytes]] = []

    def start_server(imported: str = "sdxl", code: str = SERVER) -> subprocess.Popen[bytes]:
        fd = sockets[0].fileno()
        servers.append(subprocess.Popen([sys.executable, "-c", code, str(fd), imported], pass_fds=(fd,)))
        return servers[-1]

    yield start_server
    for server in servers:
        server.kill()
        server.wait()


@pytest.fixture
def fork(sockets: tuple[socket.socket, socket.socket]) -> Callable[[str], ForkedProcess]:
    """Ask for a child that runs this code."""

    def ask(code: str, *, family: str = "sdxl", start_s: float = 60.0) -> ForkedProcess:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            env = environment(CODE=code)
            return ForkedProcess(sockets[1].fileno(), family, theirs, env, start_s=start_s)

    return ask


def test_a_child_has_the_environment_the_streams_and_the_path_of_its_worker(
    start: Start, fork: Callable[..., ForkedProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is that of its worker, and a builder of models may be anywhere on the worker's path."""
    start()
    monkeypatch.setattr(sys, "path", [*sys.path, "/where/the/models/are"])
    log = (tmp_path / "log").open("wb")
    kept = os.dup(1)
    os.dup2(log.fileno(), 1)
    try:
        child = fork("os.write(1, sys.path[-1].encode()); os._exit(7)")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert child.poll(wait=True) == 7
    assert (tmp_path / "log").read_text() == "/where/the/models/are"


def test_a_child_has_no_descriptor_of_the_server(start: Start, fork: Callable[..., ForkedProcess]) -> None:
    """It would keep the sockets of other workers open, and their ends would not be noticed."""
    start()
    listed = "set(os.listdir('/proc/self/fd')) - {'0', '1', '2', str(fd)}"
    # The descriptor of the listing itself is one.
    child = fork(f"os._exit(len({listed}))")
    assert child.poll(wait=True) == 1


def test_how_a_child_ended_is_told(start: Start, fork: Callable[..., ForkedProcess]) -> None:
    """The pool tells by it why a child was lost."""
    start()
    exits, killed = fork("os._exit(3)"), fork("import signal; signal.pause()")
    assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    assert (exits.poll(wait=True), killed.poll(wait=True)) == (3, -signal.SIGKILL)
    assert (exits.poll(), killed.poll()) == (3, -signal.SIGKILL)


@pytest.mark.parametrize("ends", ["worker", "server"])
def test_a_child_ends_with_its_worker_and_with_the_server(
    start: Start, fork: Callable[..., ForkedProcess], ends: str
) -> None:
    """It holds the memory of a model, and nobody else would end it."""
    server = start()
    child = fork("import signal; signal.pause()")
    process = psutil.Process(child.pid)
    if ends == "worker":
        child.kill()
    else:
        server.kill()
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert child.poll(wait=True) == -signal.SIGKILL


def test_a_request_waits_for_the_libraries_of_its_family(
    start: Start, fork: Callable[..., ForkedProcess]
) -> None:
    """Others are served meanwhile; and a server that is started again reads what came before."""
    wan = fork("os._exit(4)", family="wan")
    first = start("sdxl")
    assert fork("os._exit(3)").poll(wait=True) == 3
    with pytest.raises(OSError, match="timed out"):
        fork("os._exit(4)", family="wan", start_s=0.05).pid  # noqa: B018
    first.kill()
    first.wait()
    with pytest.raises(OSError, match="has ended"):
        wan.pid  # noqa: B018


def test_a_server_that_cannot_fork_refuses(start: Start, fork: Callable[..., ForkedProcess]) -> None:
    """The worker starts its child by itself, at once."""
    start("refuse")
    with pytest.raises(OSError, match="cannot fork"):
        fork("os._exit(3)").pid  # noqa: B018


def test_a_server_that_refuses_goes_on_with_the_children_that_it_has(
    sockets: tuple[socket.socket, socket.socket], start: Start, fork: Callable[..., ForkedProcess]
) -> None:
    """A library of a later family may start the thread: the first family has its child by then."""
    start(code=SERVER.replace("server.refuses =", "served =").replace("while True:", SWITCH))
    exits, stays = fork("import time; time.sleep(0.2); os._exit(3)"), fork("import signal; signal.pause()")
    process = psutil.Process(stays.pid)
    assert exits.pid
    with pytest.raises(OSError, match="cannot fork"):
        fork("os._exit(4)").pid  # noqa: B018
    assert exits.poll(wait=True) == 3
    stays.kill()
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_request_that_is_too_large_is_not_sent(start: Start, fork: Callable[..., ForkedProcess]) -> None:
    """Cut off, it would be no request; the worker starts its child by itself."""
    start()
    with pytest.raises(OSError, match="too large"):
        fork("x" * REQUEST_BYTES)
    assert fork("os._exit(3)").poll(wait=True) == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_service_ends_no_child(
    worker: None, start: Start, signum: signal.Signals
) -> None:
    """A worker drains at it; the child that computes must outlive its fork server's signal."""
    server = start(code=LIBRARIES.replace("'other', 'sdxl'", "'sdxl'"))
    with prespawn.interpreter():
        child = _Child(target=exec, args=("import sys; sys.stdin.close(); import signal; signal.pause()",))
        child.start()
        server.send_signal(signum)
        os.kill(child.pid, signum)
        again = _Child(target=exec, args=("import os; os._exit(7)",))
        again.start()
        again.join(60)
        assert (again.exitcode, server.poll()) == (7, None)
        assert psutil.Process(child.pid).is_running()
        child.terminate()
        child.join(60)


@pytest.fixture
def worker(sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is an sdxl worker without models, which asks the fork server."""
    for name, value in (
        ("OURVIDZ_WORKER", "sdxl"),
        ("OURVIDZ_MODELS", "benchmarks.null_models:build"),
        ("OURVIDZ_FORK_SERVER_FD", str(sockets[1].fileno())),
    ):
        monkeypatch.setenv(name, value)
    set_environment()
    yield
    monkeypatch.undo()
    set_environment()


def test_a_pools_children_are_forked_the_first_and_those_that_replace_it(worker: None, start: Start) -> None:
    """With the real libraries: a process object runs in the forked process, and its end is that of the pool's
    child."""
    server = start(code=LIBRARIES)
    with prespawn.interpreter():
        for number in (7, 8):
            child = _Child(target=exec, args=(f"import os, torch; os._exit({number})",))
            child.start()
            assert psutil.Process(child.pid).ppid() == server.pid
            child.join(60)
            assert child.exitcode == number
        child = _Child(target=exec, args=("import signal; signal.pause()",))
        child.start()
        child.terminate()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL


def test_a_worker_whose_fork_server_refuses_starts_its_children_by_itself(worker: None, start: Start) -> None:
    """A library that starts a thread costs memory, and no more."""
    start("refuse")
    with prespawn.interpreter():
        child = _Child(target=exec, args=("import os; os._exit(7)",))
        child.start()
        assert psutil.Process(child.pid).ppid() == os.getpid()
        child.join(60)
        assert child.exitcode == 7
