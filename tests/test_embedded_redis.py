"""The private Redis-protocol server: which binary runs, and that it ends with its process."""

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


def test_the_named_server_wins_over_every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REDIS_SERVER_BIN is the operator's choice; without it the PATH, then the package."""
    assert find_server(sys.executable) == Path(sys.executable)
    with pytest.raises(SettingsError, match="REDIS_SERVER_BIN"):
        find_server(str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server(None).name == "valkey-server", "the packaged one"
    system = tmp_path / "valkey-server"
    system.touch(mode=0o755)
    assert find_server(None) == system


def test_a_server_that_does_not_start_says_why() -> None:
    """The reader sees the server's own message."""
    server = PrivateServer("--no-such-option", "1", binary=find_server(None))
    with pytest.raises(OperatorError, match="no-such-option"):
        server.start()


def test_a_killed_server_comes_back_on_its_port() -> None:
    """Clients that keep the URL find it again."""
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
def test_it_dies_with_the_process_that_started_it() -> None:
    """A test run that is killed leaves no server behind."""
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
