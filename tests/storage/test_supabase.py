"""Supabase Storage: the behaviour of every back end, and what only this one does.

The server has the form of the API's requests and answers; resumable uploads are made by `@tus/server`, which
the API itself uses.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest

from campaigns.supabase import SupabaseServer
from ourvidz.cli.checks import check_storage
from ourvidz.errors import NotFound, SettingsError, StorageError
from ourvidz.settings import load_settings
from ourvidz.storage import supabase, supabase_api
from ourvidz.storage.supabase import SupabaseStore
from ourvidz.storage.supabase_api import SupabaseAPI, direct_url
from ourvidz.wiring.storage import open_store as open_configured
from tests.cutting_proxy import CuttingProxy
from tests.storage.suite import KEY, PNG, STAGED, StoreSuite

BUCKETS = ("workspace-temp", "reference_images", "user-library", "bucket", "checkpoints")
CHUNK = 6 << 20
LARGE = os.urandom(14_000_000)
"""Three chunks; the last is smaller."""


@pytest.fixture(scope="module")
def server(supabase_server: SupabaseServer) -> SupabaseServer:
    """A server with the buckets of the tests."""
    open_store(supabase_server).create_buckets()
    return supabase_server


def open_store(
    server: SupabaseServer,
    *,
    url: str | None = None,
    key: str | None = None,
    buckets: tuple[str, ...] = BUCKETS,
) -> SupabaseStore:
    api = SupabaseAPI(url or server.url, key or server.secret_key, sleep=lambda _s: None)
    return SupabaseStore(api, buckets=buckets)


def clear(store: SupabaseStore) -> None:
    for folder in ("workspace-temp/user-1", "workspace-temp/u", "bucket/large"):
        store.delete_folder(folder)


@pytest.fixture
def store(server: SupabaseServer) -> SupabaseStore:
    """A store without files, with a secret key."""
    opened = open_store(server)
    clear(opened)
    return opened


@pytest.fixture
def stranger() -> Iterator[ThreadingHTTPServer]:
    """A server that answers every request with its attributes `status` and `body`, and counts `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.server.requests += 1
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            """Standard error stays quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.status, running.body, running.requests = 200, b"", 0
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def open_stranger(server: ThreadingHTTPServer) -> SupabaseStore:
    return SupabaseStore(SupabaseAPI(url_of(server), "sb_secret_x", sleep=lambda _s: None), buckets=BUCKETS)


class TestSupabaseStore(StoreSuite):
    """The behaviour of every back end."""

    @pytest.fixture
    def upload(self, server: SupabaseServer) -> Callable[[SupabaseStore, str, bytes], None]:
        api = SupabaseAPI(server.url, server.secret_key)

        def send(_store: SupabaseStore, key: str, data: bytes) -> None:
            assert api.send("POST", f"/object/{quote(key)}", body=data).ok

        return send


@pytest.fixture
def proxied(server: SupabaseServer, store: SupabaseStore) -> Iterator[tuple[SupabaseStore, CuttingProxy]]:
    """A store whose connections can be cut, and what cuts them."""
    with CuttingProxy(server.port) as proxy:
        yield open_store(server, url=proxy.url), proxy


@pytest.mark.parametrize("at", [3_000_000, 9_000_000, 13_500_000], ids=["first", "second", "last"])
def test_a_cut_in_any_chunk_costs_at_most_a_chunk(
    proxied: tuple[SupabaseStore, CuttingProxy], at: int
) -> None:
    """A clip goes on where it was cut off, also on a bad line."""
    store, proxy = proxied
    proxy.reset(at)
    store.put("bucket/large/clip.mp4", LARGE, content_type="video/mp4")
    assert proxy.cut == 1
    assert proxy.sent <= len(LARGE) + CHUNK
    assert store.get("bucket/large/clip.mp4") == LARGE
    assert store.stat("bucket/large/clip.mp4").content_type == "video/mp4"


def test_a_lost_last_answer_is_asked_for_again(proxied: tuple[SupabaseStore, CuttingProxy]) -> None:
    """The server has everything, and the caller does not know it: nothing is sent twice."""
    store, proxy = proxied
    proxy.reset(len(LARGE), answers_only=True)
    store.put("bucket/large/clip.mp4", LARGE, content_type="video/mp4")
    assert proxy.cut == 1
    assert proxy.sent < len(LARGE) + CHUNK
    assert store.get("bucket/large/clip.mp4") == LARGE


def test_a_large_file_is_sent_in_chunks_of_six_mib(server: SupabaseServer, store: SupabaseStore) -> None:
    """The API takes no other size, except for the last one."""
    before = len(server.requests())
    store.put("bucket/large/clip.mp4", LARGE, content_type="video/mp4")
    made = [line.split("/")[0].strip() for line in server.requests()[before:]]
    assert made == ["POST", "PATCH", "PATCH", "PATCH"]
    assert store.get("bucket/large/clip.mp4") == LARGE


def test_an_expired_upload_starts_over(
    server: SupabaseServer, proxied: tuple[SupabaseStore, CuttingProxy]
) -> None:
    """The server drops unfinished uploads, a paused worker comes back."""
    store, proxy = proxied
    proxy.reset(9_000_000, then=server.expire_uploads)
    store.put("bucket/large/clip.mp4", LARGE, content_type="video/mp4")
    assert store.get("bucket/large/clip.mp4") == LARGE


def test_an_upload_ends_when_the_server_keeps_failing(server: SupabaseServer, store: SupabaseStore) -> None:
    """A retry begins anew and succeeds: what is unfinished is no file."""
    server.fail("PATCH", "/upload/resumable", status=503, times=5)
    with pytest.raises(StorageError, match="the storage answered 503"):
        store.put("bucket/large/clip.mp4", LARGE, content_type="video/mp4")
    assert not store.exists("bucket/large/clip.mp4")
    store.put("bucket/large/clip.mp4", LARGE, content_type="video/mp4")
    assert store.get("bucket/large/clip.mp4") == LARGE


def test_ten_refusals_are_storage_errors_and_a_retry_succeeds(
    server: SupabaseServer, store: SupabaseStore
) -> None:
    """The caller repeats the write three times; then the job has failed and can be retried."""
    server.fail("POST", "/object/workspace-temp", status=503, times=10)
    for _ in range(10):
        with pytest.raises(StorageError) as refused:
            store.put(KEY, b"x", content_type=PNG)
        assert refused.value.retryable
        assert refused.value.message == f"{KEY} could not be written: the storage answered 503."
    store.put(KEY, b"x", content_type=PNG)
    assert store.get(KEY) == b"x"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_reads_outlast_a_short_failure(server: SupabaseServer, store: SupabaseStore, status: int) -> None:
    """Nobody repeats them elsewhere."""
    store.put(KEY, b"x", content_type=PNG)
    server.fail("GET", "/object/authenticated", status=status, times=2)
    assert store.get(KEY) == b"x"
    server.fail("GET", "/object/authenticated", status=status, times=3)
    with pytest.raises(StorageError):
        store.get(KEY)


@pytest.mark.parametrize("kind", ["secret", "legacy"])
def test_both_kinds_of_keys_open_the_storage(server: SupabaseServer, kind: str) -> None:
    """The server refuses a secret key as a bearer token, and a JWT without one."""
    store = open_store(server, key=server.secret_key if kind == "secret" else server.legacy_key)
    store.check()
    store.put("bucket/large/clip.mp4", LARGE[: CHUNK + 1], content_type="video/mp4")
    assert store.get("bucket/large/clip.mp4") == LARGE[: CHUNK + 1]


def test_the_settings_choose_it(server: SupabaseServer) -> None:
    """With the buckets of the contract, and of the checkpoints of running jobs."""
    store = open_configured(load_settings(_env_file=None, **server.environment()))
    assert store.location == f"{server.url}/storage/v1"
    store.create_buckets()
    store.check_access()
    for bucket in ("workspace-temp", "sdxl_image_fast", "video_high", "user-library", "checkpoints"):
        store.put(f"{bucket}/u/0.png", b"x", content_type=PNG)
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_KEY"):
        with pytest.raises(
            SettingsError, match="OURVIDZ_STORAGE=supabase needs SUPABASE_URL and SUPABASE_SERV"
        ):
            load_settings(_env_file=None, **{**server.environment(), name: None})


def test_the_doctor_names_a_wrong_key_and_the_fix(server: SupabaseServer) -> None:
    """And does not show the key."""
    wrong = load_settings(
        _env_file=None, **server.environment() | {"SUPABASE_SERVICE_KEY": "sb_secret_wrong"}
    )
    check = check_storage(wrong)
    assert check.status == "failed"
    assert "refuses" in check.reason
    assert "SUPABASE_SERVICE_KEY" in check.fix
    assert "sb_secret_wrong" not in repr(check) + repr(wrong)


@pytest.mark.parametrize("key", ["sb_secret_wrong", "eyJhbGciOiJIUzI1NiJ9.e30.d3Jvbmc"])
def test_a_wrong_key_is_one_line_without_the_key(
    server: SupabaseServer, key: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The operator reads it when a process starts and in `ourvidz doctor`, the caller in the job's error."""
    store = open_store(server, key=key)
    with caplog.at_level(logging.DEBUG):
        for start in (store.check_access, store.create_buckets):
            with pytest.raises(SettingsError) as stopped:
                start()
            assert stopped.value.message == (
                f"SUPABASE_SERVICE_KEY: {store.location} refuses the service key (401)"
            )
        for operation in (
            store.check,
            lambda: store.put("bucket/large/clip.mp4", LARGE, content_type="video/mp4"),
            lambda: store.get(KEY),
            lambda: store.move(STAGED, KEY),
            lambda: store.delete_folder("bucket/large"),
            lambda: store.urls([KEY], lifetime_s=1),
        ):
            with pytest.raises(StorageError, match="the storage refuses the service key") as refused:
                operation()
            assert "\n" not in refused.value.message
    printed = capfd.readouterr()
    assert key not in caplog.text + printed.out + printed.err + repr(store)


def test_a_gateway_that_does_not_know_secret_keys_is_named(stranger: ThreadingHTTPServer) -> None:
    """The storage behind it asks for a bearer token, with 400: the fix is another key."""
    stranger.status = 400
    stranger.body = json.dumps(
        {
            "statusCode": "400",
            "error": "Error",
            "message": "headers must have required property 'authorization'",
        }
    ).encode()
    store = open_stranger(stranger)
    with pytest.raises(SettingsError, match=r"SUPABASE_SERVICE_KEY: .* asks for a key that is a JWT"):
        store.check_access()
    with pytest.raises(StorageError, match="legacy service_role key"):
        store.put(KEY, b"x", content_type=PNG)


def test_uploads_leave_a_storage_host_that_refuses_the_key(
    server: SupabaseServer, stranger: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no gateway. The host of all other requests takes them too."""
    stranger.status = 403
    monkeypatch.setattr(supabase_api, "direct_url", lambda _url: url_of(stranger))
    store = open_store(server)
    for _ in range(2):
        store.put("bucket/large/clip.mp4", LARGE[: CHUNK + 1], content_type="video/mp4")
    assert store.get("bucket/large/clip.mp4") == LARGE[: CHUNK + 1]
    assert stranger.requests == 1


def test_buckets_are_created_once_and_private(server: SupabaseServer) -> None:
    """`ourvidz storage init` may be run at any time; a process does not start without its buckets."""
    store = open_store(server, buckets=("workspace-temp", "made-by-init"))
    with pytest.raises(SettingsError, match="has no bucket made-by-init; `ourvidz storage init` creates it"):
        store.check_access()
    assert store.create_buckets() == ["made-by-init"]
    assert store.create_buckets() == []
    store.check_access()
    server.fail("GET", "/bucket", status=500, times=3)
    with pytest.raises(StorageError, match="does not list its buckets: the storage answered 500"):
        store.check_access()


def test_a_missing_bucket_is_not_a_missing_file(server: SupabaseServer, store: SupabaseStore) -> None:
    """A job would be taken for deleted. What is to be deleted is not there, and that is no error."""
    for operation in (
        lambda: store.put("nowhere/0.png", b"x", content_type=PNG),
        lambda: store.put("nowhere/0.png", LARGE, content_type=PNG),
        lambda: store.get("nowhere/0.png"),
        lambda: store.exists("nowhere/0.png"),
        lambda: store.copy("nowhere/0.png", KEY),
        lambda: store.move("nowhere/0.png", KEY),
    ):
        with pytest.raises(StorageError, match="its bucket does not exist; `ourvidz storage init`"):
            operation()
    assert list(store.list_files("nowhere/x")) == store.folders("nowhere/x") == []
    store.delete("nowhere/0.png")
    store.delete_folder("nowhere/x")
    assert store.urls(["nowhere/0.png"], lifetime_s=60) == {}


def test_a_signed_url_is_read_without_a_key(server: SupabaseServer, store: SupabaseStore) -> None:
    """A browser has none. No other path than the signed one opens, and a missing file has no URL."""
    store.put(KEY, b"pixels", content_type=PNG)
    store.put(STAGED, b"other", content_type=PNG)
    urls = store.urls([KEY, "workspace-temp/user-1/missing.png", "no key"], lifetime_s=60)
    assert list(urls) == [KEY]
    with urllib.request.urlopen(urls[KEY], timeout=10) as response:
        assert response.read() == b"pixels"
        assert response.headers["Content-Type"] == PNG
    stolen = urls[KEY].replace("0.png", ".attempts/7.t/0.png")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(stolen, timeout=10)
    assert server.secret_key not in urls[KEY]


def test_a_storage_that_does_not_sign_is_left_alone_for_a_while(server: SupabaseServer) -> None:
    """Everybody who reads a job would wait for it."""
    now = [100.0]
    api = SupabaseAPI(server.url, server.secret_key, sleep=lambda _s: None)
    store = SupabaseStore(api, buckets=BUCKETS, clock=lambda: now[0])
    store.put(KEY, b"x", content_type=PNG)
    server.fail("POST", "/object/sign", status=503, times=1)
    before = len(server.requests())
    for _ in range(3):
        with pytest.raises(StorageError, match="could not be signed"):
            store.urls([KEY], lifetime_s=60)
    assert len(server.requests()) == before + 1
    now[0] += supabase.UNSIGNED_S
    assert list(store.urls([KEY], lifetime_s=60)) == [KEY]


def test_names_that_are_refused_keep_no_others_from_their_urls(
    server: SupabaseServer, store: SupabaseStore
) -> None:
    """A caller chooses what is asked for, and must not switch off the URLs of everybody."""
    store.put(KEY, b"x", content_type=PNG)
    server.fail("POST", "/object/sign", status=400, times=1)
    with pytest.raises(StorageError, match="could not be signed"):
        store.urls(["user-library/user-1/odd name?.png"], lifetime_s=60)
    assert list(store.urls([KEY], lifetime_s=60)) == [KEY]


def test_no_more_is_read_than_was_asked_for(stranger: ThreadingHTTPServer) -> None:
    """A gateway that ignores ranges sends a file of any size, and a reference may be one."""
    stranger.body = bytes(range(256)) * (64 << 10)
    store = open_stranger(stranger)
    tracemalloc.start()
    assert store.get(KEY, start=1, length=3) == bytes([1, 2, 3])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(stranger.body) / 4
    assert store.get(KEY, start=3) == stranger.body[3:]


def test_listings_are_complete_beyond_a_page(
    server: SupabaseServer, store: SupabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page has at most a thousand entries."""
    monkeypatch.setattr(supabase, "LIST_PAGE", 3)
    monkeypatch.setattr(supabase, "DELETED_AT_ONCE", 2)
    keys = {f"workspace-temp/u/job/{at}/0.png" for at in range(8)}
    for key in keys:
        store.put(key, b"x", content_type=PNG)
    assert {file.key for file in store.list_files("workspace-temp/u/job")} == keys
    assert store.folders("workspace-temp/u/job") == [str(at) for at in range(8)]
    store.delete_folder("workspace-temp/u/job")
    assert list(store.list_files("workspace-temp/u")) == []


def test_an_underscore_is_no_wildcard(store: SupabaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's comparison takes it for any character: another user's files must not be listed."""
    other = "workspace-temp/u/jobx1/0.png"
    for key in (other, "workspace-temp/u/JOB_1/0.png", "workspace-temp/u/job_1/0.png"):
        store.put(key, b"x", content_type=PNG)
    store.put("workspace-temp/u/jobx1/.attempts/9.t/0.png", b"x", content_type=PNG)
    assert [file.key for file in store.list_files("workspace-temp/u/job_1")] == [
        "workspace-temp/u/job_1/0.png"
    ]
    assert store.folders("workspace-temp/u/job_1") == []
    monkeypatch.setattr(supabase, "LIST_PAGE", 1)
    store.put("workspace-temp/u/job11/0.png", b"x", content_type=PNG)
    store.delete_folder("workspace-temp/u/job_1")
    assert not store.exists("workspace-temp/u/job_1/0.png"), "the first page had other files only"
    assert store.exists(other)


def test_a_move_is_one_request_where_there_is_no_file(server: SupabaseServer, store: SupabaseStore) -> None:
    """The server renames. It replaces nothing, so over an older file there is a copy and a deletion."""
    store.put(STAGED, b"new", content_type=PNG)
    before = len(server.requests())
    store.move(STAGED, KEY)
    assert server.requests()[before:] == ["POST /object/move"]
    store.put(STAGED, b"newer", content_type=PNG)
    before = len(server.requests())
    store.move(STAGED, KEY)
    assert server.requests()[before:] == [
        "POST /object/move",
        "POST /object/copy",
        "DELETE /object/workspace-temp",
    ]
    assert store.get(KEY) == b"newer"


def test_a_move_whose_answer_was_lost_is_not_repeated_here(
    proxied: tuple[SupabaseStore, CuttingProxy],
) -> None:
    """Repeated, it would find nothing, and the attempt would think that another one had its file."""
    store, proxy = proxied
    store.put(STAGED, b"new", content_type=PNG)
    proxy.reset(1, answers_only=True)
    with pytest.raises(StorageError):
        store.move(STAGED, KEY)
    with pytest.raises(NotFound):
        store.move(STAGED, KEY)
    assert store.get(KEY) == b"new"


def test_files_can_be_copied_and_moved_between_buckets(store: SupabaseStore) -> None:
    """The types of jobs have buckets of their own."""
    store.put(STAGED, b"new", content_type=PNG)
    store.copy(STAGED, "bucket/large/copy.png")
    store.move(STAGED, "bucket/large/moved.png")
    assert store.get("bucket/large/copy.png") == store.get("bucket/large/moved.png") == b"new"
    assert not store.exists(STAGED)


@pytest.mark.parametrize("body", [b"<html>", b'{"objects": [1], "folders": []}', b"null", b"7", b"[7]"])
def test_the_answers_of_another_server_are_storage_errors(stranger: ThreadingHTTPServer, body: bytes) -> None:
    """Anything may answer at a wrong URL."""
    stranger.body = body
    store = open_stranger(stranger)
    for operation in (
        lambda: store.stat(KEY),
        lambda: list(store.list_files("bucket/x")),
        lambda: store.folders("bucket/x"),
        lambda: store.delete_folder("bucket/x"),
        lambda: store.urls([KEY], lifetime_s=1),
        lambda: store.create_buckets(),
        lambda: store.put(KEY, LARGE, content_type=PNG),
    ):
        with pytest.raises(StorageError):
            operation()


def test_large_files_go_to_the_storage_host() -> None:
    """Hosted projects have one; every other URL stays as it is."""
    assert direct_url("https://abc.supabase.co") == "https://abc.storage.supabase.co"
    assert direct_url("https://abc.supabase.co/") == "https://abc.storage.supabase.co/"
    for same in (
        *("https://abc.storage.supabase.co", "https://supabase.co", "http://127.0.0.1:54321"),
        *("https://abc.supabase.co.evil.example", "https://abc.supabase.co:8443", "https://data.example"),
    ):
        assert direct_url(same) == same


def test_an_upload_stays_with_the_host_whatever_the_server_says(server: SupabaseServer) -> None:
    """A proxy changes the URL of an upload, and the key must reach no other host: only the id is used."""
    answer = supabase_api.Answer(201, {"location": "http://evil.example/elsewhere/upload/resumable/the-id"})
    api = RecordingAPI(server.url, server.secret_key, answer)
    SupabaseStore(api, buckets=()).put("bucket/x", LARGE[: CHUNK + 1], content_type=PNG)
    assert api.paths == ["/upload/resumable", "/upload/resumable/the-id", "/upload/resumable/the-id"]


class RecordingAPI(SupabaseAPI):
    """Answers the creation of an upload with `answer`, and takes every chunk."""

    def __init__(self, url: str, key: str, answer: supabase_api.Answer) -> None:
        super().__init__(url, key)
        self.answer, self.paths = answer, []

    def send(self, method: str, path: str, **options):
        self.paths.append(path)
        if method == "POST":
            return self.answer
        end = int(options["headers"]["Upload-Offset"]) + len(options["body"])
        return supabase_api.Answer(204, {"upload-offset": str(end)})
