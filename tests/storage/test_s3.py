"""S3 storage: behaves as every back end, survives cuts, signs URLs, and sends what is configured."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import requests

from campaigns.s3_server import S3Server
from campaigns.sigv4 import verify
from ourvidz.errors import NotFound, StorageError
from ourvidz.storage.s3 import PART_BYTES, S3Store
from ourvidz.storage.s3_client import RETRIES
from tests.cutting_proxy import CuttingProxy
from tests.storage.suite import StoreSuite

KEY = "workspace-temp/user-1/job-1/0.png"
CLIP = "workspace-temp/user-1/job-1/0.mp4"
PNG = "image/png"
Open = Callable[..., S3Store]


class TestBehaviour(StoreSuite):
    """S3 storage behaves as every back end."""

    @pytest.fixture
    def store(self, s3_store: S3Store) -> S3Store:
        return s3_store

    @pytest.fixture
    def upload(self, s3_server: S3Server) -> Callable[[S3Store, str, bytes], None]:
        return lambda store, key, data: s3_server.store(store.bucket, f"installations/one/{key}", data)


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


def test_a_folder_with_objects_of_others_is_deleted(s3_server: S3Server, s3_store: S3Store) -> None:
    """An operator's file has a name that is no key, and a web page stores objects that stand for folders."""
    folder = "workspace-temp/user-1/job-1"
    s3_store.put(KEY, b"x", content_type=PNG)
    for name in ("", "a folder/", "my file.txt", "über 100%.txt", "%41.txt", "what?.txt", "~#[x]\\.txt"):
        s3_server.store(
            s3_store.bucket, f"installations/one/{folder}/{name}", b"x" if name.endswith(".txt") else b""
        )
    assert [file.key for file in s3_store.list_files(folder)] == [KEY]
    s3_store.delete_folder(folder)
    left = s3_server.stored_keys(s3_store.bucket)
    assert left == [f"installations/one/{folder}/", f"installations/one/{folder}/a folder/"]
    assert list(s3_store.list_files(folder)) == []


@pytest.mark.parametrize("name", ["a//b.txt", "a/../b.txt", "a/c/./b.txt", "a/\x01.txt"])
def test_an_object_with_a_name_that_cannot_be_read_is_named(
    s3_server: S3Server, s3_store: S3Store, name: str
) -> None:
    """The library fails with such a page of a listing. All other files of the folder are deleted."""
    folder = "workspace-temp/user-1/job-1"
    stranger = f"installations/one/{folder}/{name}"
    s3_server.store(s3_store.bucket, stranger, b"x")
    for key in (KEY, f"{folder}/.attempts/7.t/0.png", f"{folder}/b/c/d.png"):
        s3_store.put(key, b"x", content_type=PNG)
    with pytest.raises(StorageError, match=re.escape(ascii(stranger))) as failed:
        s3_store.delete_folder(folder)
    assert "remove it with another program" in failed.value.message
    assert s3_server.stored_keys(s3_store.bucket) == [stranger]


def test_a_bucket_in_another_region_is_created_there(open_storage: Open) -> None:
    """AWS refuses a bucket whose region is not named outside of its first one."""
    storage = open_storage(region="eu-central-1")
    assert storage.create_buckets() == [storage.bucket]
    storage.check()


def test_a_signed_url_can_be_read_until_it_ends_and_for_no_other_file(
    s3_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser reads the file without a key."""
    s3_store.put(CLIP, b"0123456789", content_type="video/mp4")
    s3_store.put(KEY, b"other", content_type=PNG)
    url = s3_store.urls([CLIP], lifetime_s=60)[CLIP]
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
    s3_store: S3Store, open_storage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that another tool has left there belongs to another key."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "left-over")
    storage = open_storage(bucket=s3_store.bucket)
    storage.check()
    assert "left-over" not in storage.urls([KEY], lifetime_s=60)[KEY]


def test_a_move_whose_source_is_deleted_after_the_copy_is_reported(
    s3_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt learns that its file was deleted, and does not publish it."""
    source = "workspace-temp/user-1/job-1/.attempts/7.t/0.png"
    s3_store.put(source, b"x", content_type=PNG)
    copy = s3_store.copy

    def copy_slowly(source: str, key: str) -> None:
        copy(source, key)
        s3_store.delete_folder("workspace-temp/user-1/job-1/.attempts/7.t")

    monkeypatch.setattr(s3_store, "copy", copy_slowly)
    with pytest.raises(NotFound):
        s3_store.move(source, KEY)


def test_publishing_a_file_costs_three_requests(s3_server: S3Server, s3_store: S3Store) -> None:
    """A job publishes its files one after the other, and each request takes tens of milliseconds."""
    source = "workspace-temp/user-1/job-1/.attempts/7.t/0.png"
    s3_store.put(source, b"x", content_type=PNG)
    s3_server.requests.clear()
    s3_store.move(source, KEY)
    assert s3_server.requests == {"PUT": 1, "HEAD": 1, "DELETE": 1}
    s3_server.requests.clear()
    s3_store.delete_folder("workspace-temp/user-1/job-1/.attempts/7.t")
    assert s3_server.requests == {"GET": 1}


def test_a_failed_upload_leaves_no_parts(s3_server: S3Server, s3_store: S3Store) -> None:
    """They would cost money, and nobody sees them."""
    # Both parts are refused, as often as they are tried.
    s3_server.fail(2 * (RETRIES + 1), method="PUT")
    with pytest.raises(StorageError):
        s3_store.put(CLIP, bytes(PART_BYTES + 1), content_type="video/mp4")
    assert s3_server.unfinished_uploads(s3_store.bucket) == 0
    assert not s3_store.exists(CLIP)
