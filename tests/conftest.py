"""Servers, ledgers, checkpoints and certificates that tests of several packages share."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from campaigns.s3_server import S3Server
from campaigns.supabase import NotInstalled, SupabaseServer
from ourvidz.embedded_redis import PrivateServer, find_server
from ourvidz.ledger.store import Ledger
from ourvidz.startup import collector_paused
from tests import hub_server
from tests.hub_server import TinyHub

MIB = 1 << 20

pytest_plugins = ["ourvidz.testing", "tests.selection"]


def pytest_configure() -> None:
    """Let processes that tests start react to a hangup also where the tests run under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import without garbage collection, and exempt imported modules from it.

    Pipelines collect garbage when they free device memory; with the million objects of the libraries that
    would take longer than the few steps of a test. Here they do not end the exemption as they do in a worker.
    """
    with collector_paused():
        result = yield
    devices = sys.modules.get("ourvidz.pipelines.devices")
    if devices is not None:
        stand_in = SimpleNamespace(collect=gc.collect, unfreeze=lambda: None, get_freeze_count=lambda: 0)
        devices.gc = stand_in  # type: ignore[attr-defined]
    return result


@pytest.fixture(scope="session")
def started_s3_server() -> Iterator[S3Server]:
    """A server with the API of S3 in this process."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_server(started_s3_server: S3Server) -> Iterator[S3Server]:
    """The S3 server, healthy; a test that stores files uses a bucket of its own."""
    yield started_s3_server
    started_s3_server.heal()


@pytest.fixture(scope="session")
def supabase_server() -> Iterator[SupabaseServer]:
    """A server with the Storage API of Supabase; a test that stores files uses users of its own."""
    with ExitStack() as running:
        try:
            server = running.enter_context(SupabaseServer())
        except NotInstalled as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield server


@pytest.fixture
def collector() -> Iterator[Any]:
    """The garbage collector, for tests that exempt objects from it: afterwards only imported modules are."""
    yield gc
    gc.unfreeze()
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def redis_url() -> str:
    """The URL of an empty database, for the broker and for ledgers whose keys a test reads."""
    from ourvidz.testing import private_server  # not earlier: pytest rewrites the plugin's assertions first

    url = private_server().url
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., PrivateServer]]:
    """Returns a function that starts a server with the given options; the test may kill and restart it."""
    started: list[PrivateServer] = []

    def start(*options: str) -> PrivateServer:
        folder = tmp_path / f"redis{len(started)}"
        folder.mkdir()
        server = PrivateServer(*options, binary=find_server(None), folder=folder)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount disks of so many MiB; skipped where this process may not mount."""
    with ExitStack() as mounted:

        def mount(size_mib: int) -> Path:
            folder = tmp_path / f"disk{size_mib}"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "ourvidz-test", str(folder)]
            if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
                pytest.skip("this process may not mount a tmpfs: a full disk is not tested")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            return folder

        yield mount


@pytest.fixture
def make_ledger() -> Iterator[Callable[..., Any]]:
    """Returns `make_ledger(kind, **options)`, which makes a ledger with its own key prefix. `kind` may be a
    subclass of `Ledger`."""
    from ourvidz import testing

    with ExitStack() as exit_stack:

        def make(kind: type[Ledger] = Ledger, **options: Any) -> Ledger:
            made = kind(testing.redis_url(), prefix=exit_stack.enter_context(testing.key_prefix()), **options)
            exit_stack.callback(made.close)
            return made

        yield make


@dataclass(frozen=True)
class Chain:
    """A self-signed certificate chain and its private key, in PEM."""

    certificate: bytes
    key: bytes

    def variables(self, folder: Path) -> dict[str, str]:
        """Write both files into a folder and return the variables of the settings with their paths."""
        written = {"OURVIDZ_C2PA_CERTIFICATE": self.certificate, "OURVIDZ_C2PA_KEY": self.key}
        for name, pem in written.items():
            (folder / f"{name}.pem").write_bytes(pem)
        return {name: str(folder / f"{name}.pem") for name in written}


@pytest.fixture(scope="session")
def make_chain() -> Callable[..., Chain]:
    """Returns a function that makes a C2PA signing certificate, valid for `days` from ten days ago."""
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


@pytest.fixture
def tiny_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    """A hub on this machine, named by `HF_ENDPOINT`; nothing else is reachable through it."""
    from huggingface_hub import close_session

    for name in ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    close_session()
    with hub_server.serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
    close_session()
