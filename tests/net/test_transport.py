"""TLS on a connection to a pinned address: the certificate is verified against the host name."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ourvidz.net import transport
from ourvidz.net.client import HttpClient, HttpResponse, RequestFailure
from ourvidz.net.egress_policy import EgressPolicy

PATIENCE_S = 20.0
NAME = "receiver.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Script = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of `receiver.example` and its key in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the client trust that certificate only."""
    monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    transport.tls_context.cache_clear()
    yield
    transport.tls_context.cache_clear()


@pytest.fixture
def serve(certificate: Path) -> Iterator[Callable[[Script], int]]:
    """Returns a function that starts a TLS server and returns its port. The server runs a script on one
    connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(script: Script) -> int:
        def run() -> None:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1 << 16)
                    script(secured)
            except OSError:
                connection.close()

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(PATIENCE_S)
    listener.close()


def get(host: str, port: int, *, timeout_s: float = PATIENCE_S) -> HttpResponse | RequestFailure:
    """GET https://host:port/ with a resolver that returns 127.0.0.1 for every name."""
    client = client_of(host, port, timeout_s=timeout_s)
    return client.get(f"https://{host}:{port}/", headers={})


def client_of(host: str, port: int, **options: Any) -> HttpClient:
    """A client for which every name has the address 127.0.0.1."""

    def resolver(name: str, port: int, *_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    policy = EgressPolicy([f"{host}:{port}"], resolver=resolver)  # type: ignore[arg-type]
    return HttpClient(connector=policy, **options)


@pytest.mark.parametrize("host", [NAME, f"{NAME}."])
def test_a_certificate_of_the_host_name_is_accepted(
    trusted: None, serve: Callable[[Script], int], host: str
) -> None:
    """TLS uses the host name, without a final dot, although the connection is to a pinned address."""
    result = get(host, serve(lambda connection: connection.sendall(OK)))
    assert isinstance(result, HttpResponse)
    assert result.body == b"{}"


def test_an_encrypted_connection_is_kept(trusted: None, serve: Callable[[Script], int]) -> None:
    """The tickets that a server sends after the handshake are no sign that it has closed the connection."""

    def answer_twice(connection: socket.socket) -> None:
        connection.sendall(OK)
        connection.recv(1 << 16)
        connection.sendall(OK)

    port = serve(answer_twice)
    client = client_of(NAME, port, timeout_s=PATIENCE_S, keep_alive=True)
    for _ in range(2):
        # The server accepts one connection.
        result = client.get(f"https://{NAME}:{port}/", headers={})
        assert isinstance(result, HttpResponse), result
        assert result.status == 200


def test_a_certificate_of_another_name_is_refused(trusted: None, serve: Callable[[Script], int]) -> None:
    """The host name is verified although the address is pinned."""
    result = get("other.example", serve(lambda connection: connection.sendall(OK)))
    assert result == RequestFailure("the TLS handshake failed")


def test_an_untrusted_certificate_is_refused(serve: Callable[[Script], int]) -> None:
    """A self-signed certificate is rejected with the default certificate authorities."""
    result = get(NAME, serve(lambda connection: connection.sendall(OK)))
    assert result == RequestFailure("the TLS handshake failed")


def test_a_response_that_never_starts_ends_at_the_deadline(
    trusted: None, serve: Callable[[Script], int]
) -> None:
    """The encrypted connection has the same deadline as a plain one."""
    finished = threading.Event()
    port = serve(lambda connection: finished.wait(PATIENCE_S) and None)
    assert get(NAME, port, timeout_s=0.5) == RequestFailure("no answer in time")
    finished.set()


def test_an_unfinished_handshake_ends_at_the_deadline(trusted: None) -> None:
    """The TLS handshake is bounded by the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert get(NAME, port, timeout_s=0.3) == RequestFailure("no answer in time")
