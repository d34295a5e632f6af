"""Stored assets: served from a directory, or redirected to a signed URL."""

from __future__ import annotations

import errno
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from campaigns.s3_server import S3Server
from ourvidz.errors import StorageError
from ourvidz.wiring.storage import open_store
from tests.web.conftest import USER

KEY = f"workspace-temp/{USER}/job-1/0.png"
CHECKPOINT = "checkpoints/jobs/j/7.t/denoising.safetensors"
STAGED = f"workspace-temp/{USER}/job-1/.attempts/7.t/0.png"
_numbers = itertools.count()


@pytest.fixture
def remote(open_shim, s3_server: S3Server):
    """A shim, as in production, whose files are in a bucket of its own."""
    variables = s3_server.environment(f"web-{next(_numbers)}") | {"OURVIDZ_SIGNED_URL_S": "60"}
    shim = open_shim(store=open_store, **variables)
    shim.store.create_buckets()
    return shim


def test_a_production_shim_serves_assets(open_shim) -> None:
    """The route exists on every shim."""
    shim = open_shim()
    shim.store.put(KEY, b"picture", content_type="image/png")
    assert shim.client.get(f"/assets/{KEY}").content == b"picture"


def test_a_stored_file_is_redirected_to_where_it_is(remote) -> None:
    """The bytes do not pass through the shim; the URL ends, so it is not cached."""
    remote.store.put(KEY, b"picture", content_type="image/png")
    answer = remote.client.get(f"/assets/{KEY}", follow_redirects=False)
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
    location = answer.headers["location"]
    assert parse_qs(urlsplit(location).query)["X-Amz-Expires"] == ["60"]
    file = requests.get(location, timeout=10)
    assert (file.content, file.headers["content-type"]) == (b"picture", "image/png")


@pytest.mark.parametrize(
    "path",
    [
        f"workspace-temp/{USER}/job-1/1.png", f"workspace-temp/{USER}/job-1", "workspace-temp/a%00b",
        "workspace-temp/~0", CHECKPOINT, STAGED,
    ],
)  # fmt: skip
def test_no_url_is_signed_for_what_is_no_published_file(remote, path: str) -> None:
    """A signed URL would open a checkpoint, or a file that is not there."""
    for key in (KEY, CHECKPOINT, STAGED):
        remote.store.put(key, b"x", content_type="image/png")
    answer = remote.client.get(f"/assets/{path}", follow_redirects=False)
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_storage_that_is_away_is_no_missing_file(remote, s3_server: S3Server) -> None:
    """A caller that reads 404 would forget the file."""
    s3_server.fail(3)
    answer = remote.client.get(f"/assets/{KEY}", follow_redirects=False)
    assert (answer.status_code, answer.json()["code"]) == (500, "STORAGE_ERROR")
    assert s3_server.failures_left == 0


def test_a_storage_that_hangs_holds_up_no_other_request(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """All routes share a few dozen threads; a page of pictures must not take them all."""
    released, asked = threading.Event(), threading.Semaphore(0)

    def hang(key: str) -> bool:
        asked.release()
        return not released.wait(60)

    monkeypatch.setattr(remote.store, "exists", hang)
    with ThreadPoolExecutor(60) as browsers:
        pages = [
            browsers.submit(remote.client.get, f"/assets/{KEY}", follow_redirects=False) for _ in range(50)
        ]
        try:
            assert asked.acquire(timeout=30)
            answer = browsers.submit(remote.client.get, "/jobs/none").result(timeout=10)
            assert answer.status_code == 404
        finally:
            released.set()
        assert {page.result(timeout=30).status_code for page in pages} == {404}


def test_a_result_has_signed_urls_made_when_it_is_read(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are never stored: the record outlives them. Those of a list are signed together."""
    calls: list[int] = []
    urls = remote.store.urls

    def counted(keys: Any, **options: Any) -> dict[str, str]:
        calls.append(len(keys))
        return urls(keys, **options)

    monkeypatch.setattr(remote.store, "urls", counted)
    for number in (1, 2):
        remote.submit(id=f"job-{number}")
        remote.end(f"job-{number}", remote.completed(f"job-{number}"))
    for name in (KEY, KEY.replace(".png", ".thumb.webp")):
        remote.store.put(name, name.encode(), content_type="image/png")
    result = remote.client.get("/jobs/job-1").json()["result"]
    assert result["assets"][0]["url"] == KEY
    assert requests.get(result["imageUrl"], timeout=10).content == KEY.encode()
    assert requests.get(result["thumbnailUrl"], timeout=10).content.endswith(b".thumb.webp")
    assert calls == [2]
    listed = remote.client.get("/jobs").json()["items"]
    assert all("X-Amz-Signature" in job["result"]["imageUrl"] for job in listed)
    assert calls == [2, 4]
    stored = remote.ledger.get("job-1")
    assert "X-Amz" not in repr(stored)


def test_a_job_can_be_read_while_nothing_can_be_signed(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state does not depend on the storage."""
    remote.submit()
    remote.end("job-1", remote.completed())

    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("away")

    monkeypatch.setattr(remote.store, "urls", fail)
    assert remote.client.get("/jobs/job-1").json()["result"]["imageUrl"] == KEY


@pytest.mark.parametrize(
    ("name", "media_type", "disposition"),
    [
        ("0.png", "image/png", "inline"),
        ("0.mp4", "video/mp4", "inline"),
        ("0.thumb.webp", "image/webp", "inline"),
        ("page.html", "application/octet-stream", "attachment"),
        ("drawing.svg", "application/octet-stream", "attachment"),
    ],
)
def test_an_asset_is_served_with_its_media_type(shim, name: str, media_type: str, disposition: str) -> None:
    """Only images and videos are displayed: a stored page must not run in this origin."""
    shim.store.put(f"workspace-temp/u/j/{name}", b"0123456789", content_type="x/y")
    answer = shim.client.get(f"/assets/workspace-temp/u/j/{name}")
    assert (answer.content, answer.headers["content-type"]) == (b"0123456789", media_type)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith(disposition)


def test_a_byte_range_of_a_video_can_be_read(shim) -> None:
    """Browsers seek with range requests."""
    shim.store.put("workspace-temp/u/j/0.mp4", b"0123456789", content_type="video/mp4")
    answer = shim.client.get("/assets/workspace-temp/u/j/0.mp4", headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=2-", (206, b"23456789", "bytes 2-9/10")),
        ("bytes=-3", (206, b"789", "bytes 7-9/10")),
        ("bytes=-30", (206, b"0123456789", "bytes 0-9/10")),
        ("bytes=9-500", (206, b"9", "bytes 9-9/10")),
        ("BYTES = 0 - 0", (206, b"0", "bytes 0-0/10")),
        # A unit that is not known is ignored, and so are several ranges: both are the server's right.
        ("items=2-4", (200, b"0123456789", None)),
        ("bytes=0-1,4-5", (200, b"0123456789", None)),
        *((f"bytes={part}", (416, None, "bytes */10")) for part in (
            "10-", "99-100", "5-2", "-0", "-", "", "a-b", "--5", "+1-2", "1_0-", "0-1-2", "9" * 40 + "-",
        )),
    ],
)  # fmt: skip
def test_a_range_is_answered_with_its_bytes_or_a_problem(
    shim, value: str, expected: tuple[int, bytes | None, str | None]
) -> None:
    """As RFC 9110 says; a refusal is a problem document like every other."""
    shim.store.put("workspace-temp/u/j/0.mp4", b"0123456789", content_type="video/mp4")
    answer = shim.client.get("/assets/workspace-temp/u/j/0.mp4", headers={"Range": value})
    status, content, content_range = expected
    assert (answer.status_code, answer.headers.get("content-range")) == (status, content_range)
    if content is None:
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.json()["code"], answer.json()["field"]) == ("INVALID_PARAMETERS", "Range")
    else:
        assert (answer.content, answer.headers["content-length"]) == (content, str(len(content)))


def test_a_range_of_another_version_is_the_whole_file(shim) -> None:
    """A repeated job writes the same key again: a player must not join the halves of two clips."""
    shim.store.put("workspace-temp/u/j/0.mp4", b"old", content_type="video/mp4")
    old = shim.client.get("/assets/workspace-temp/u/j/0.mp4").headers["etag"]
    for etag, status in ((old, 206), ('"other"', 200)):
        headers = {"Range": "bytes=1-", "If-Range": etag}
        assert shim.client.get("/assets/workspace-temp/u/j/0.mp4", headers=headers).status_code == status
    shim.store.put("workspace-temp/u/j/0.mp4", b"newer", content_type="video/mp4")
    headers = {"Range": "bytes=1-", "If-Range": old}
    assert shim.client.get("/assets/workspace-temp/u/j/0.mp4", headers=headers).content == b"newer"


def test_a_kept_copy_is_used_only_while_the_file_is_there(shim) -> None:
    """No proxy keeps what was sent to one caller, and a browser shows no picture that was deleted."""
    shim.store.put(KEY, b"picture", content_type="image/png")
    first = shim.client.get(f"/assets/{KEY}")
    assert first.headers["cache-control"] == "private, no-cache"
    for condition in (first.headers["etag"], f'"x", W/{first.headers["etag"]}', "*"):
        headers = {"If-None-Match": condition, "Range": "bytes=1-"}
        again = shim.client.get(f"/assets/{KEY}", headers=headers)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    headers = {"If-None-Match": first.headers["etag"]}
    shim.store.put(KEY, b"another picture", content_type="image/png")
    assert shim.client.get(f"/assets/{KEY}", headers=headers).content == b"another picture"
    shim.store.delete(KEY)
    assert shim.client.get(f"/assets/{KEY}", headers=headers).status_code == 404


@pytest.mark.parametrize("kind", ["shim", "remote"])
def test_the_headers_of_a_file_are_read_without_it(request: pytest.FixtureRequest, kind: str) -> None:
    """A player asks for the size first. Signed URLs of S3 answer GET only, so this is no redirect."""
    shim = request.getfixturevalue(kind)
    shim.store.put(KEY, b"0123456789", content_type="image/png")
    answer = shim.client.head(f"/assets/{KEY}", headers={"Range": "bytes=2-4"}, follow_redirects=False)
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["content-length"], answer.headers["content-type"]) == ("10", "image/png")
    assert answer.headers["last-modified"].endswith("GMT")
    for path in (f"workspace-temp/{USER}/job-1/1.png", CHECKPOINT, STAGED, "workspace-temp"):
        assert shim.client.head(f"/assets/{path}").status_code == 404


def test_a_file_that_is_deleted_while_it_is_sent_arrives(shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when it was asked for; half an answer would be of no use."""
    shim.store.put(KEY, b"picture", content_type="image/png")
    open_file = shim.store.open_file

    def open_and_delete(key: str) -> Any:
        file = open_file(key)
        shim.store.delete(key)
        return file

    monkeypatch.setattr(shim.store, "open_file", open_and_delete)
    assert shim.client.get(f"/assets/{KEY}").content == b"picture"
    assert shim.client.get(f"/assets/{KEY}").status_code == 404


@pytest.mark.parametrize("kind", ["shim", "remote"])
def test_no_file_of_a_deleted_job_is_served(request: pytest.FixtureRequest, kind: str) -> None:
    """Nor at a URL that was signed before. Other files of its user stay."""
    shim = request.getfixturevalue(kind)
    shim.submit()
    shim.end("job-1", shim.completed())
    own, reference = KEY.replace("/job-1/", "/job-2/"), f"user-library/{USER}/job-1/0.png"
    for key in (KEY, KEY.replace(".png", ".thumb.webp"), own, reference):
        shim.store.put(key, b"picture", content_type="image/png")
    signed = shim.client.get("/jobs/job-1").json()["result"]["imageUrl"]
    assert shim.client.delete("/jobs/job-1?force=true").status_code == 200
    for key, status in ((KEY, 404), (KEY.replace(".png", ".thumb.webp"), 404), (own, 200), (reference, 200)):
        assert shim.client.head(f"/assets/{key}").status_code == status
    answer = requests.get(signed, timeout=10) if kind == "remote" else shim.client.get(signed)
    assert answer.status_code == 404


def test_a_disk_that_cannot_be_read_is_no_missing_file(shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that reads 404 would forget the file."""
    shim.store.put(KEY, b"picture", content_type="image/png")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", fail)
    answer = shim.client.get(f"/assets/{KEY}")
    assert (answer.status_code, answer.json()["code"]) == (500, "STORAGE_ERROR")
    assert str(shim.store.root) not in answer.text


@pytest.mark.parametrize("kind", ["shim", "remote"])
def test_no_path_is_too_long_to_be_missing(request: pytest.FixtureRequest, kind: str) -> None:
    """A system refuses such names with errors of its own."""
    shim = request.getfixturevalue(kind)
    for path in ("a/" * 4000 + "b", "a" * 300, "/".join(["a" * 255] * 20)):
        answer = shim.client.get(f"/assets/user-library/{path}", follow_redirects=False)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_file_that_a_user_has_named_is_served(shim) -> None:
    """At the URL that the storage gives for it."""
    key = f"user-library/{USER}/my photo (1)?.png"
    path = shim.store.root / key
    path.parent.mkdir(parents=True)
    path.write_bytes(b"picture")
    answer = shim.client.get(shim.store.urls([key], lifetime_s=60)[key])
    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["content-disposition"] == "inline; filename*=utf-8''my%20photo%20%281%29%3F.png"


@pytest.mark.parametrize(
    "path",
    [
        "workspace-temp/u/j/1.png", "workspace-temp/u", "workspace-temp", "%2e%2e/secret", "..%2fsecret",
        "workspace-temp/..%2f..%2fsecret", "workspace-temp/%2e%2e/%2e%2e/secret", "a%00b/c", "%2fetc/passwd",
        "workspace-temp//etc/passwd", "workspace-temp/link/secret", "workspace-temp/~0",
        CHECKPOINT, STAGED, "other/secret",
    ],
)  # fmt: skip
def test_nothing_but_published_files_is_served(shim, path: str) -> None:
    """Neither through `..`, nor links, nor encodings of them; no checkpoint, and no file of an attempt."""
    root = shim.store.root
    (root / "workspace-temp" / "u").mkdir(parents=True)
    (root.parent / "secret").write_text("secret")
    (root / "workspace-temp" / "link").symlink_to(root.parent)
    for key in (CHECKPOINT, STAGED, "other/secret"):
        shim.store.put(key, b"secret", content_type="x/y")
    answer = shim.client.get(f"/assets/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
