"""Stored assets: served from a directory, or redirected to a signed URL."""

from __future__ import annotations

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
