"""The embedded server, for real."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ourvidz.cli import embedded
from ourvidz.cli.state import StateDir
from ourvidz.cli.supervisor import Supervisor
from ourvidz.errors import OperatorError, SettingsError


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "with a space")


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor(lambda _: None)
    yield made
    made.kill()


def start(supervisor: Supervisor, state: StateDir) -> str:
    return embedded.start(supervisor, state, binary=embedded.find_server(None), notice=lambda _: None)


def test_it_keeps_every_acknowledged_write_through_a_kill(supervisor: Supervisor, state: StateDir) -> None:
    """A queued job that was acknowledged must survive a power cut."""
    with redis.Redis.from_url(start(supervisor, state)) as client:
        client.set("job", "queued")
    os.kill(supervisor.pids()["redis"], signal.SIGKILL)
    supervisor.forget("redis")
    with redis.Redis.from_url(start(supervisor, state)) as client:
        assert client.get("job") == b"queued"


def test_it_asks_for_a_password_evicts_nothing_and_writes_through(
    supervisor: Supervisor, state: StateDir
) -> None:
    """Other users of this machine must not read the jobs; full memory must not drop any."""
    url = start(supervisor, state)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendfsync")["appendfsync"] == "always"
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        port = client.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert (state.root / "redis" / "redis.conf").stat().st_mode & 0o077 == 0


def test_a_port_that_is_taken_is_not_the_end(
    supervisor: Supervisor, state: StateDir, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between choosing a port and binding it, somebody else may have been quicker."""
    taken = redis.Redis.from_url(redis_url).connection_pool.connection_kwargs["port"]
    free = embedded.free_port()
    ports = iter((taken, free))
    monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
    assert start(supervisor, state).endswith(f":{free}/0")


def test_a_server_that_outlived_its_stack_is_stopped_first(supervisor: Supervisor, state: StateDir) -> None:
    """Two servers that append to one file would ruin it."""
    old = Supervisor(lambda _: None)
    first = start(old, state)
    second = start(supervisor, state)
    assert first != second
    with redis.Redis.from_url(first) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    old.kill()


def test_a_server_that_will_not_start_is_named_with_its_log(supervisor: Supervisor, state: StateDir) -> None:
    """The operator reads the server's own reason."""
    with pytest.raises(OperatorError, match=r"redis\.log"):
        embedded.start(supervisor, state, binary=Path("/bin/false"), notice=lambda _: None)


def test_the_named_server_wins_over_every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REDIS_SERVER_BIN is the operator's choice; without it the PATH, then the package."""
    assert embedded.find_server(sys.executable) == Path(sys.executable)
    with pytest.raises(SettingsError, match="REDIS_SERVER_BIN"):
        embedded.find_server(str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_server(None).name == "valkey-server", "the packaged one"
    system = tmp_path / "valkey-server"
    system.touch(mode=0o755)
    assert embedded.find_server(None) == system
