"""Errors of S3 storage: what is tried again, what an operator has to correct, and no secret in any."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from campaigns.s3_server import S3Server
from ourvidz.errors import SettingsError, StorageError
from ourvidz.storage import s3, s3_client
from ourvidz.storage.s3 import S3Store
from ourvidz.storage.s3_client import S3Options
from ourvidz.storage.s3_errors import is_no_bucket

KEY = "workspace-temp/user-1/job-1/0.png"
CLIP = "workspace-temp/user-1/job-1/0.mp4"
PNG = "image/png"
Open = Callable[..., S3Store]


class _Tries:
    """Calls a function at most three times, as the workflow does with a write; counts the calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, write: Callable[[], object]) -> None:
        for attempt in range(1, StorageError.attempts + 1):
            self.count += 1
            try:
                write()
            except StorageError:
                if attempt == StorageError.attempts:
                    raise
            else:
                return


def test_ten_failures_are_a_storage_error_and_the_next_try_succeeds(
    s3_server: S3Server, s3_store: S3Store
) -> None:
    """The job ends with STORAGE_ERROR, which its caller may repeat; nothing is left of the first try."""
    tries = _Tries()
    s3_server.fail(10)
    with pytest.raises(StorageError, match="server answers SlowDown") as refused:
        tries(lambda: s3_store.put(KEY, b"x", content_type=PNG))
    assert tries.count == 3
    assert refused.value.retryable
    assert s3_server.failures_left == 1
    s3_store.put(KEY, b"x", content_type=PNG)
    assert s3_server.failures_left == 0
    assert s3_store.get(KEY) == b"x"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret_access_key": "a-wrong-secret"}, "the secret does not belong to this access key"),
        ({"access_key_id": "AKIAUNKNOWN"}, "the server does not know this access key"),
    ],
)
def test_a_wrong_key_is_one_clear_line(
    s3_store: S3Store, open_storage: Open, changes: dict[str, str], reason: str
) -> None:
    """The operator reads what to correct, and no secret."""
    storage = open_storage(bucket=s3_store.bucket, **changes)
    with pytest.raises(SettingsError, match=reason) as refused:
        storage.check_access()
    message = refused.value.message
    assert refused.value.field == "OURVIDZ_S3_ACCESS_KEY_ID, OURVIDZ_S3_SECRET_ACCESS_KEY"
    assert "\n" not in message
    assert "a-wrong-secret" not in message
    for operation in (
        lambda: storage.put(KEY, b"x", content_type=PNG),
        lambda: storage.get(KEY),
        lambda: storage.exists(KEY),
        lambda: storage.copy(KEY, CLIP),
        lambda: list(storage.list_files("workspace-temp/user-1")),
        lambda: storage.delete(KEY),
        storage.check,
    ):
        with pytest.raises(StorageError) as failed:
            operation()
        assert failed.value.__cause__ is None
        assert failed.value.__suppress_context__
        assert "\n" not in failed.value.message


def test_a_missing_bucket_is_named_and_created(open_storage: Open) -> None:
    """A file is not reported as missing where there is no bucket: its job would be lost."""
    storage = open_storage()
    for operation in (storage.check, lambda: storage.get(KEY), lambda: storage.copy(KEY, CLIP)):
        with pytest.raises(StorageError, match="there is no such bucket; `ourvidz storage init`"):
            operation()
    with pytest.raises(SettingsError, match="OURVIDZ_S3_BUCKET: s3://bucket"):
        storage.check_access()
    assert storage.create_buckets() == [storage.bucket]
    assert storage.create_buckets() == []
    storage.check_access()
    storage.check()


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            "OURVIDZ_S3_REGION: {}: the bucket is in another region",
        ),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            "OURVIDZ_S3_REGION: {}: the bucket is in another region",
        ),
        ("403 Forbidden", "RequestTimeTooSkewed", "clock: {}: the clock of this machine is wrong"),
        (
            "403 Forbidden",
            "AccessDenied",
            "OURVIDZ_S3_ACCESS_KEY_ID, OURVIDZ_S3_SECRET_ACCESS_KEY: {}: this access key",
        ),
        (
            "403 Forbidden",
            None,
            "OURVIDZ_S3_ACCESS_KEY_ID, OURVIDZ_S3_SECRET_ACCESS_KEY: {}: the access key is refused",
        ),
        ("404 Not Found", None, "OURVIDZ_S3_ENDPOINT: {}: the server answers 404"),
    ],
)
def test_a_refusal_names_what_to_correct(
    s3_server: S3Server, s3_store: S3Store, status: str, code: str | None, line: str
) -> None:
    """The answers of S3 say it in codes, some of them to other requests than one thinks."""
    s3_server.fail(1, status=status, code=code)
    with pytest.raises(SettingsError) as refused:
        s3_store.check_access()
    assert refused.value.message.startswith(line.format(s3_store.location))


def test_no_secret_is_shown(s3_server: S3Server, s3_store: S3Store) -> None:
    """Representations are logged."""
    for shown in (
        repr(s3_store),
        str(vars(s3_store)),
        s3_store.location,
        repr(S3Options("b", secret_access_key="s3cret")),
    ):
        assert s3_server.secret_key not in shown
        assert "s3cret" not in shown


def test_a_server_that_never_answers_is_not_waited_for_long(
    open_storage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A starting process and a browser that asks for a file wait a moment; an upload may take longer."""
    monkeypatch.setattr(s3, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(s3, "TRANSFER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3_client, "RETRY_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storage = open_storage(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        for operation in (
            storage.check_access,
            lambda: storage.exists(KEY),
            lambda: storage.put(KEY, b"x", content_type=PNG),
        ):
            with pytest.raises(StorageError, match="the server did not answer in time"):
                operation()


def test_a_certificate_that_is_not_trusted_is_named(
    open_storage: Open, make_chain: Any, tmp_path: Path
) -> None:
    """A server within a company has one of its own authority."""
    files = make_chain().variables(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["OURVIDZ_C2PA_CERTIFICATE"], files["OURVIDZ_C2PA_KEY"])
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        storage = open_storage(endpoint=f"https://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageError, match="the certificate of the server is not trusted"):
            storage.check_access()
        server.shutdown()


def test_a_server_that_is_away_is_a_storage_error(open_storage: Open) -> None:
    """It is no reason to change a setting."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        storage = open_storage(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}")
        for operation in (storage.check_access, lambda: storage.get(KEY)):
            with pytest.raises(StorageError, match="nothing listens at this address"):
                operation()


def test_a_lost_answer_is_no_failure(
    s3_server: S3Server, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it is of an upload in parts, its publication, and its removal: the server has done what was
    asked, and is asked again. A whole write is repeated at most once."""
    # Small parts: the server computes for as long as all else of this test takes.
    monkeypatch.setattr(s3, "PART_BYTES", 1 << 10)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    folder = "workspace-temp/user-1/job-1"
    source, data = f"{folder}/.attempts/7.t/0.mp4", os.urandom(s3.PART_BYTES + 1)

    def publish() -> int:
        tries = _Tries()
        tries(lambda: s3_store.put(source, data, content_type="video/mp4"))
        s3_store.move(source, CLIP)
        return tries.count

    s3_server.requests.clear()
    publish()
    assert s3_server.requests["POST"] == 2, "an upload in parts begins and ends"
    for lost in range(s3_server.requests.total()):
        s3_server.lose_answers(1, after=lost)
        assert publish() <= 2
        assert s3_store.get(CLIP) == data
        assert not s3_store.exists(source)
    s3_store.put(KEY, b"x", content_type=PNG)
    for lost in range(4):
        s3_server.lose_answers(1, after=lost)
        s3_store.delete_folder(folder)
        assert s3_server.stored_keys(s3_store.bucket) == []
        s3_store.put(KEY, b"x", content_type=PNG)


def test_a_server_that_finds_nothing_to_delete_may_say_so(s3_server: S3Server, s3_store: S3Store) -> None:
    """S3 does not, others do."""
    s3_server.fail(1, "DELETE", status="404 Not Found", code="NoSuchKey")
    s3_store.delete(KEY)
    assert s3_server.failures_left == 0


def test_an_upload_that_the_server_has_forgotten_is_tried_again(
    s3_server: S3Server, s3_store: S3Store
) -> None:
    """It is no missing file: the attempt would take it for the loss of its job."""
    s3_server.fail(1, "PUT", status="404 Not Found", code="NoSuchUpload")
    with pytest.raises(StorageError, match="NoSuchUpload"):
        s3_store.put(KEY, b"x", content_type=PNG)


def test_a_key_that_is_named_like_an_error_is_none() -> None:
    """The library's text contains the key."""
    missing = "Object at location workspace-temp/u/NoSuchBucket/0.png not found: <Code>NoSuchKey</Code>"
    assert not is_no_bucket(missing)
    assert is_no_bucket("status code: 404: <Error><Code>NoSuchBucket</Code></Error>")
