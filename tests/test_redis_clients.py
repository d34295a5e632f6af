"""Clients of a ledger and of the broker: a failover, a user with few rights, and TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from campaigns.replication import ReplicatedService, local_node
from ourvidz.embedded_redis import PrivateServer
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.settings import environment
from tests.factories import image_job

ROOT = Path(__file__).parents[1]
BROKER = """
from ourvidz.app import app
with app.connection_for_write() as connection:
    queue = connection.SimpleQueue("sdxl_queue")
    queue.put("a message", priority=6)
    print(queue.get(timeout=20).payload)
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ReplicatedService]:
    """A primary, a replica and three sentinels."""
    servers = [local_node(name) for name in ("one", "two")]
    sentinels = [local_node(f"sentinel-{number}") for number in range(3)]
    options = ("--appendonly", "yes", "--appendfsync", "always")
    folder = tmp_path / "service"
    with ReplicatedService(folder, servers=servers, sentinels=sentinels, options=options) as service:
        yield service


def broker_message(url: str) -> str:
    """Send and receive a message through the broker of a process with this Redis URL."""
    env = environment(OURVIDZ_REDIS_URL=url, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", BROKER]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.system
def test_ledger_and_broker_follow_a_failover(service: ReplicatedService) -> None:
    """With sentinels in the URL nobody has to change a setting. A call that begins while there is no primary
    waits for the new one."""
    ledger = Ledger(service.url, replica_acks=1)
    ledger.register(image_job("before"), priority=6)
    assert broker_message(service.url) == "a message"
    former = service.primary()
    service.kill(former)
    assert ledger.get("before") is not None
    assert service.wait_for_failover(former) == service.servers[1]
    assert broker_message(service.url) == "a message"

    async def read() -> Any:
        client = ledger._connection.open_async_client()
        try:
            return await client.hget("ourvidz:job:before", "status")
        finally:
            await client.aclose()

    assert asyncio.run(read()) == "queued"
    with pytest.raises(WorkerUnavailable, match="is recorded, but 0 of 1 replicas"):
        ledger.register(image_job("alone"), priority=6)
    service.start_server(former)
    replica = redis.Redis.from_url(former.server_url)
    while replica.hget("ourvidz:job:alone", "status") is None:
        continue
    assert not ledger.register(image_job("alone"), priority=6).created
    ledger.close()


@pytest.mark.system
def test_servers_and_sentinels_may_require_different_passwords(tmp_path: Path) -> None:
    """The password of the servers is not sent to the sentinels, which would refuse it."""
    servers = [local_node(name, password="server-pw") for name in ("one", "two")]
    sentinels = [local_node("sentinel", password="sentinel-pw")]
    with ReplicatedService(tmp_path / "service", servers=servers, sentinels=sentinels) as service:
        assert Ledger(service.url).register(image_job("a"), priority=6).created
        assert broker_message(service.url) == "a message"
        wrong = service.url.replace("sentinel-pw", "server-pw")
        with pytest.raises(WorkerUnavailable):
            Ledger(wrong).ping()


ACL = ("on", ">p@ss;word", "~*", "&*", "+@all", "-@admin", "-@dangerous", "+info", "+config|get", "+restore")
"""The rights that `docs/how-to/production.md` asks for."""


def test_a_user_without_administrative_rights_is_enough(start_redis: Callable[..., PrivateServer]) -> None:
    """Managed servers give no others. The password needs percent-encoding."""
    server = start_redis()
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "ourvidz", *ACL)
        admin.execute_command("ACL", "SETUSER", "default", "off")
    url = server.url.replace("redis://", "redis://ourvidz:p%40ss%3Bword@")
    ledger = Ledger(url)
    ledger.register(image_job("a"), priority=6)
    claim = ledger.claim("a", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    assert ledger.renew(claim, lease_s=10)
    ledger.close()
    assert broker_message(url) == "a message"


@contextmanager
def tls_proxy(port: int, certificate: Path) -> Iterator[int]:
    """A TLS port in front of a TCP port of this host; yields it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            return
        finally:
            for end in (source, sink):
                end.close()

    def serve() -> None:
        while True:
            try:
                client = context.wrap_socket(listener.accept()[0], server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def write_certificate(path: Path) -> Path:
    """Write a self-signed certificate for 127.0.0.1 and its key."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def test_tls_verifies_the_server(start_redis: Callable[..., PrivateServer], tmp_path: Path) -> None:
    """For ledger and broker. Without the authority of the certificate there is no connection."""
    certificate = write_certificate(tmp_path / "server.pem")
    with tls_proxy(start_redis().port, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required"
        trusting = f"{url}&ssl_ca_certs={certificate}.crt"
        ledger = Ledger(trusting)
        ledger.register(image_job("a"), priority=6)
        ledger.close()
        assert broker_message(trusting) == "a message"
        with pytest.raises(WorkerUnavailable):
            Ledger(url).ping()
