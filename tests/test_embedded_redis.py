"""The private Redis server: the choice of its binary, its start and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from ourvidz.embedded_redis import PrivateServer, find_server
from ourvidz.errors import OperatorError, SettingsError

OWNER = """
import sys, time
from pathlib import Path
from ourvidz.embedded_redis import PrivateServer, find_server

server = PrivateServer(binary=find_server(None))
server.start()
print(server.url, flush=True)
time.sleep(60)
"""


def test_the_configured_server_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is REDIS_SERVER_BIN, the PATH, the package."""
    assert find_server(sys.executable) == Path(sys.executable)
    with pytest.raises(SettingsError, match="REDIS_SERVER_BIN"):
        find_server(str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server(None).name == "valkey-server", "the packaged one"
    system = tmp_path / "valkey-server"
    system.touch(mode=0o755)
    assert find_server(None) == system


def test_a_failed_start_raises_the_message_of_the_server() -> None:
    """Operators see why the server did not start."""
    server = PrivateServer("--no-such-option", "1", binary=find_server(None))
    with pytest.raises(OperatorError, match="no-such-option"):
        server.start()


def test_a_killed_server_restarts_on_the_same_port() -> None:
    """Clients reconnect with the same URL."""
    server = PrivateServer(binary=find_server(None))
    server.start()
    url = server.url
    server.kill()
    server.kill()
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    server.start()
    with redis.Redis.from_url(url) as client:
        assert client.ping()
    server.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no parent-death signal")
def test_the_server_exits_with_the_process_that_started_it() -> None:
    """A killed test run leaves no server running."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    with redis.Redis.from_url(url) as client:
        assert client.ping()
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        with pytest.raises(redis.ConnectionError):
            ping_for(client, 10)


def ping_for(client: redis.Redis, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        client.ping()
        time.sleep(0.01)
