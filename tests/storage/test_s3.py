"""S3 storage survives cuts and overload, says what is wrong with a key, and shows no secret."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import requests

from campaigns.s3_server import S3Server
from campaigns.sigv4 import verify
from ourvidz.errors import NotFound, SettingsError, StorageError
from ourvidz.storage.s3 import PART_BYTES, RETRIES, S3Options, S3Storage
from tests.cutting_proxy import CuttingProxy
from tests.storage.suite import StoreSuite

KEY = "workspace-temp/user-1/job-1/0.png"
CLIP = "workspace-temp/user-1/job-1/0.mp4"
PNG = "image/png"
_numbers = itertools.count()

Open = Callable[..., S3Storage]


@pytest.fixture
def open_storage(s3_server: S3Server) -> Open:
    """Open a storage on the server: `open_storage(option=…)`."""

    def start(**changes: Any) -> S3Storage:
        options: dict[str, Any] = {
            "bucket": f"bucket-{next(_numbers)}",
            "endpoint": s3_server.url,
            "access_key_id": s3_server.access_key,
            "secret_access_key": s3_server.secret_key,
        }
        return S3Storage(S3Options(**(options | changes)))

    return start


@pytest.fixture(autouse=True)
def healthy(s3_server: S3Server) -> Iterator[None]:
    """No failure of one test reaches the next."""
    yield
    s3_server.fail(0)


@pytest.fixture
def store(open_storage: Open) -> S3Storage:
    """An empty bucket."""
    storage = open_storage(prefix="installations/one")
    storage.create_buckets()
    return storage


class TestBehaviour(StoreSuite):
    """S3 storage behaves as every back end."""

    @pytest.fixture
    def store(self, store: S3Storage) -> S3Storage:
        return store


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


@pytest.mark.parametrize("part", range(3))
def test_a_cut_in_a_part_of_a_large_file_costs_that_part(
    s3_server: S3Server, open_storage: Open, part: int
) -> None:
    """A clip goes over a line that breaks: what arrives is whole, and not much is sent twice."""
    data = os.urandom(14 << 20)
    with CuttingProxy(s3_server.port) as proxy:
        storage = open_storage(endpoint=proxy.url)
        storage.create_buckets()
        proxy.reset(part * PART_BYTES + PART_BYTES // 2)
        storage.put(CLIP, data, content_type="video/mp4")
        assert proxy.cut == 1
        assert proxy.sent < len(data) + PART_BYTES + (64 << 10)
        assert hashlib.sha256(storage.get(CLIP)).digest() == hashlib.sha256(data).digest()
        assert storage.stat(CLIP).content_type == "video/mp4"


def test_ten_failures_are_a_storage_error_and_the_next_try_succeeds(
    s3_server: S3Server, store: S3Storage
) -> None:
    """The job ends with STORAGE_ERROR, which its caller may repeat; nothing is left of the first try."""
    tries = _Tries()
    s3_server.fail(10)
    with pytest.raises(StorageError, match="server answers SlowDown") as refused:
        tries(lambda: store.put(KEY, b"x", content_type=PNG))
    assert tries.count == 3
    assert refused.value.retryable
    assert s3_server.failures_left == 1
    store.put(KEY, b"x", content_type=PNG)
    assert s3_server.failures_left == 0
    assert store.get(KEY) == b"x"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret_access_key": "a-wrong-secret"}, "the secret does not belong to this access key"),
        ({"access_key_id": "AKIAUNKNOWN"}, "the server does not know this access key"),
    ],
)
def test_a_wrong_key_is_one_clear_line(
    store: S3Storage, open_storage: Open, changes: dict[str, str], reason: str
) -> None:
    """The operator reads what to correct, and no secret."""
    storage = open_storage(bucket=store.bucket, **changes)
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
    s3_server: S3Server, store: S3Storage, status: str, code: str | None, line: str
) -> None:
    """The answers of S3 say it in codes, some of them to other requests than one thinks."""
    s3_server.fail(1, status=status, code=code)
    with pytest.raises(SettingsError) as refused:
        store.check_access()
    assert refused.value.message.startswith(line.format(store.location))


def test_a_folder_with_objects_of_others_is_deleted(s3_server: S3Server, store: S3Storage) -> None:
    """An operator's file has a name that is no key, and a web page stores objects that stand for folders."""
    folder = "workspace-temp/user-1/job-1"
    store.put(KEY, b"x", content_type=PNG)
    for name in ("", "a folder/", "my file.txt", "über 100%.txt"):
        s3_server.store(
            store.bucket, f"installations/one/{folder}/{name}", b"x" if name.endswith(".txt") else b""
        )
    assert [file.key for file in store.list_files(folder)] == [KEY]
    store.delete_folder(folder)
    left = s3_server.stored_keys(store.bucket)
    assert left == [f"installations/one/{folder}/", f"installations/one/{folder}/a folder/"]
    assert list(store.list_files(folder)) == []


def test_a_bucket_in_another_region_is_created_there(open_storage: Open) -> None:
    """AWS refuses a bucket whose region is not named outside of its first one."""
    storage = open_storage(region="eu-central-1")
    assert storage.create_buckets() == [storage.bucket]
    storage.check()


def test_a_signed_url_can_be_read_until_it_ends_and_for_no_other_file(
    store: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser reads the file without a key."""
    store.put(CLIP, b"0123456789", content_type="video/mp4")
    store.put(KEY, b"other", content_type=PNG)
    url = store.urls([CLIP], lifetime_s=60)[CLIP]
    answer = requests.get(url, headers={"Range": "bytes=2-4"}, timeout=10)
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["content-type"] == "video/mp4"
    assert requests.get(url.replace("0.mp4", "0.png"), timeout=10).status_code == 403
    assert requests.get(url.partition("?")[0], timeout=10).status_code == 403
    assert requests.put(url, data=b"x", timeout=10).status_code == 403
    later = datetime.now(UTC) + timedelta(seconds=61)
    monkeypatch.setattr("campaigns.s3_server.verify", partial(verify, now=later))
    assert requests.get(url, timeout=10).status_code == 403


def test_urls_are_signed_for_the_public_host(open_storage: Open) -> None:
    """Workers call the server by a name that browsers do not know."""
    storage = open_storage(bucket="assets", prefix="a", public_endpoint="https://files.example.com")
    url = storage.urls([KEY], lifetime_s=60)[KEY]
    assert url.startswith(f"https://files.example.com/assets/a/{KEY}?X-Amz-")
    hosted = open_storage(bucket="assets", public_endpoint="https://s3.example.com", path_style=False)
    url = hosted.urls([KEY], lifetime_s=60)[KEY]
    assert url.startswith(f"https://assets.s3.example.com/{KEY}?X-Amz-")


def test_checksums_are_sent_only_if_configured(s3_server: S3Server, open_storage: Open) -> None:
    """Older servers refuse them."""
    for checksum, expected in (("none", set()), ("sha256", {"x-amz-checksum-sha256"})):
        storage = open_storage(checksum=checksum)
        storage.create_buckets()
        s3_server.headers.clear()
        storage.put(KEY, b"x", content_type=PNG)
        assert {name for name in s3_server.headers if "checksum" in name} == expected
        storage.put(CLIP, bytes(PART_BYTES + 1), content_type="video/mp4")
        assert storage.get(CLIP, start=PART_BYTES) == b"\0"


def test_aws_variables_of_the_environment_do_not_mix_with_the_configured_key(
    store: S3Storage, open_storage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that another tool has left there belongs to another key."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "left-over")
    storage = open_storage(bucket=store.bucket)
    storage.check()
    assert "left-over" not in storage.urls([KEY], lifetime_s=60)[KEY]


def test_no_secret_is_shown(s3_server: S3Server, store: S3Storage) -> None:
    """Representations are logged."""
    for shown in (
        repr(store),
        str(vars(store)),
        store.location,
        repr(S3Options("b", secret_access_key="s3cret")),
    ):
        assert s3_server.secret_key not in shown
        assert "s3cret" not in shown


def test_a_server_that_is_away_is_a_storage_error(open_storage: Open) -> None:
    """It is no reason to change a setting."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        storage = open_storage(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}")
        for operation in (storage.check_access, lambda: storage.get(KEY)):
            with pytest.raises(StorageError, match="nothing listens at this address"):
                operation()


def test_a_move_whose_source_is_deleted_after_the_copy_is_reported(
    store: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt learns that its file was deleted, and does not publish it."""
    source = "workspace-temp/user-1/job-1/.attempts/7.t/0.png"
    store.put(source, b"x", content_type=PNG)
    copy = store.copy

    def copy_slowly(source: str, key: str) -> None:
        copy(source, key)
        store.delete_folder("workspace-temp/user-1/job-1/.attempts/7.t")

    monkeypatch.setattr(store, "copy", copy_slowly)
    with pytest.raises(NotFound):
        store.move(source, KEY)


def test_publishing_a_file_costs_three_requests(s3_server: S3Server, store: S3Storage) -> None:
    """A job publishes its files one after the other, and each request takes tens of milliseconds."""
    source = "workspace-temp/user-1/job-1/.attempts/7.t/0.png"
    store.put(source, b"x", content_type=PNG)
    s3_server.requests.clear()
    store.move(source, KEY)
    assert s3_server.requests == {"PUT": 1, "HEAD": 1, "DELETE": 1}
    s3_server.requests.clear()
    store.delete_folder("workspace-temp/user-1/job-1/.attempts/7.t")
    assert s3_server.requests == {"GET": 1}


def test_a_failed_upload_leaves_no_parts(s3_server: S3Server, store: S3Storage) -> None:
    """They would cost money, and nobody sees them."""
    # Both parts are refused, as often as they are tried.
    s3_server.fail(2 * (RETRIES + 1), method="PUT")
    with pytest.raises(StorageError):
        store.put(CLIP, bytes(PART_BYTES + 1), content_type="video/mp4")
    assert s3_server.unfinished_uploads(store.bucket) == 0
    assert not store.exists(CLIP)
