"""The embedded Redis server, with the real binary."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from ourvidz.cli import embedded
from ourvidz.cli.state import StateDir
from ourvidz.cli.supervisor import Supervisor
from ourvidz.embedded_redis import find_server, free_port
from ourvidz.errors import OperatorError

pytestmark = pytest.mark.system


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "with a space")


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor(lambda _: None)
    yield supervisor
    supervisor.kill_all()


def start(supervisor: Supervisor, state: StateDir) -> str:
    return embedded.start(supervisor, state, binary=find_server(None), notify=lambda _: None)


def test_acknowledged_writes_survive_a_kill(supervisor: Supervisor, state: StateDir) -> None:
    """A queued job must survive a power cut."""
    with redis.Redis.from_url(start(supervisor, state)) as client:
        client.set("job", "queued")
    os.kill(supervisor.pids()["redis"], signal.SIGKILL)
    supervisor.kill("redis")
    with redis.Redis.from_url(start(supervisor, state)) as client:
        assert client.get("job") == b"queued"


def test_a_server_that_hangs_is_restarted(supervisor: Supervisor, state: StateDir) -> None:
    """It accepts connections and answers nothing: everybody would wait."""
    url = embedded.start(supervisor, state, binary=find_server(None), notify=lambda _: None, hang_s=3)
    embedded.start_probing(url, state)
    frozen = supervisor.pids()["redis"]
    deadline = time.monotonic() + 30

    def wait_until(condition: Callable[[], bool]) -> None:
        while not condition():
            assert time.monotonic() < deadline
            supervisor.tick()
            time.sleep(0.02)

    wait_until(lambda: any(state.beats("redis").iterdir()))
    os.kill(frozen, signal.SIGSTOP)
    wait_until(lambda: supervisor.pids().get("redis", frozen) != frozen)
    with redis.Redis.from_url(url, socket_timeout=1) as client:

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        wait_until(answers)


def test_the_server_has_a_password_evicts_nothing_and_syncs_every_write(
    supervisor: Supervisor, state: StateDir
) -> None:
    """Other users of this machine must not read the jobs; a full memory must not delete any."""
    url = start(supervisor, state)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendfsync")["appendfsync"] == "always"
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        port = client.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert (state.root / "redis" / "redis.conf").stat().st_mode & 0o077 == 0


def test_another_port_is_tried_when_one_is_taken(
    supervisor: Supervisor, state: StateDir, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may bind the port after it was chosen."""
    taken = redis.Redis.from_url(redis_url).connection_pool.connection_kwargs["port"]
    free = free_port()
    ports = iter((taken, free))
    monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
    assert start(supervisor, state).endswith(f":{free}/0")


def test_a_server_of_an_earlier_stack_is_stopped_first(supervisor: Supervisor, state: StateDir) -> None:
    """Two servers that append to one file would damage it."""
    old = Supervisor(lambda _: None)
    first = start(old, state)
    second = start(supervisor, state)
    assert first != second
    with redis.Redis.from_url(first) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    old.kill_all()


def test_a_failed_start_is_an_error_with_the_log_file(supervisor: Supervisor, state: StateDir) -> None:
    """The log holds the server's own error message."""
    with pytest.raises(OperatorError, match=r"redis\.log"):
        embedded.start(supervisor, state, binary=Path("/bin/false"), notify=lambda _: None)
