"""References become images, and all failures of a URL look alike."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from ourvidz.errors import InvalidParameters, NotFound, ReferenceForbidden, ReferenceFrameError, StorageError
from ourvidz.jobs.catalog import READ_BUCKETS
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import Fetcher
from ourvidz.references.data_uri import TOO_LARGE
from ourvidz.references.decode import UNREADABLE
from ourvidz.references.resolve import FORBIDDEN, NOT_FETCHED, ReferenceLimits, ReferenceResolver

Save = Callable[..., bytes]
LIMITS = ReferenceLimits(max_bytes=200_000, max_pixels=10_000)
TIMEOUT_S = 0.5
SLACK_S = 2.0


@pytest.fixture
def png(save: Save) -> bytes:
    """A small green image as a PNG file."""
    return save(Image.new("RGB", (30, 20), "green"), "PNG")


class WebServer:
    """An HTTP server on a free loopback port; `/silent` never answers."""

    def __init__(self, pages: dict[str, tuple[int, str, bytes]]) -> None:
        closed = self.closed = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/silent":
                    closed.wait(30)
                    return
                status, kind, body = pages.get(self.path.partition("?")[0], (404, "text/plain", b"not here"))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Write nothing to the output of tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.netloc = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web(png: bytes) -> Iterator[WebServer]:
    """A server with an image, and with files that are no images."""
    server = WebServer(
        {
            "/a.png": (200, "application/octet-stream", png),
            "/page": (200, "image/png", b"<html>" + bytes(100)),
            "/cut": (200, "image/png", png[:60]),
            "/denied": (403, "image/png", png),
        }
    )
    yield server
    server.close()


class RecordingStorage:
    """Reads from a dictionary, and records the requested paths."""

    def __init__(self, files: dict[str, bytes] | None = None, error: Exception | None = None) -> None:
        self.files = files or {}
        self.error = error
        self.requested: list[str] = []

    def __call__(self, path: str, max_bytes: int) -> bytes:
        self.requested.append(path)
        if self.error:
            raise self.error
        if path not in self.files:
            raise NotFound("There is nothing.", field="key", value=path)
        return self.files[path][:max_bytes]


def resolver(storage: RecordingStorage | None = None, *allowed: str) -> ReferenceResolver:
    """A resolver with a real fetcher, which may call these hosts besides public ones."""
    fetcher = Fetcher(EgressPolicy(allowed), timeout_s=TIMEOUT_S, max_bytes=LIMITS.max_bytes)
    return ReferenceResolver(fetcher.get, storage or RecordingStorage(), LIMITS)


def error_of(
    references: ReferenceResolver, reference: str, user_id: str | None = "user-1"
) -> ReferenceFrameError:
    with pytest.raises(ReferenceFrameError) as raised:
        references.resolve(reference, user_id=user_id)
    return raised.value


def is_green(image: Image.Image) -> bool:
    return (image.mode, image.size, image.getpixel((5, 5))) == ("RGB", (30, 20), (0, 128, 0))


def test_a_url_is_resolved(web: WebServer) -> None:
    """The most common reference."""
    resolved = resolver(None, web.netloc).resolve(f"http://{web.netloc}/a.png?x=1", user_id="user-1")
    assert is_green(resolved.image)
    assert resolved.tries == 1


def test_a_data_uri_is_resolved(png: bytes) -> None:
    """Browsers make them of dropped files."""
    uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    resolved = resolver().resolve(uri, user_id=None)
    assert is_green(resolved.image)
    assert resolved.tries is None


@pytest.mark.parametrize("bucket", READ_BUCKETS)
def test_a_storage_path_is_resolved(png: bytes, bucket: str) -> None:
    """Earlier results and uploads are referred to by their storage path."""
    path = f"{bucket}/user-1/some/a.png"
    assert is_green(resolver(RecordingStorage({path: png})).resolve(path, user_id="user-1").image)


def closed_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("path", ["/missing", "/denied", "/page", "/silent"])
def test_all_failures_of_a_url_look_alike(web: WebServer, path: str) -> None:
    """If they differed, callers could scan the ports of our network."""
    port = closed_port()
    references = resolver(None, web.netloc, f"127.0.0.1:{port}")
    began = time.monotonic()
    errors = [
        error_of(references, url)
        for url in (f"http://{web.netloc}{path}", f"http://127.0.0.1:{port}/", "http://127.0.0.1:1/", "http://10.0.0.1/")
    ]  # fmt: skip
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    assert {(e.code, e.message, e.field, e.rule, e.value) for e in errors} == {
        ("REFERENCE_FRAME_ERROR", NOT_FETCHED, "reference", None, None)
    }


@pytest.mark.parametrize(
    "reference",
    [
        *("file:///etc/passwd", "FILE:///etc/passwd"),
        *("ftp://example.com/a.png", "gopher://127.0.0.1:6379/_PING"),
        *("javascript:alert(1)", "http:", "http://"),
        *("https://", "http:///etc/passwd", "http://a@example.com/"),
        *("http://169.254.169.254/latest/meta-data/", "http://[::1]/"),
        *("http://localhost/", "http://2130706433/"),
        *("blob:https://example.com/1", "about:blank", "x:"),
        *("C:/pictures/a.png", "http://\x00/", "http://a b"),
    ],
)  # fmt: skip
def test_any_other_address_is_not_fetched(reference: str) -> None:
    """Most are rejected at submission; older jobs may still have them."""
    error = error_of(resolver(), reference)
    assert (error.code, error.message) == ("REFERENCE_FRAME_ERROR", NOT_FETCHED)


@pytest.mark.parametrize(
    "path",
    [
        *("workspace-temp/user-2/a.png", "workspace-temp/user-1/../user-2/a"),
        "workspace-temp/user-1/%2e%2e/user-2/a",
        *("workspace-temp/user-1//a.png", "workspace-temp/user-1"),
        *("workspace-temp/user-1/", "workspace-temp"),
        *("workspace-temp/user-1/..\\a.png", "workspace-temp/user-1/%5c..%5ca"),
        *("sdxl_image_fast/user-1/a", ""),
        *("/workspace-temp/user-1/a.png", "../workspace-temp/user-1/a", "secrets/user-1/a", "./user-1/a.png"),
        *("workspace-temp/user-10/a.png", "workspace-temp/USER-1/a.png", "workspace-temp/user-1/./a.png"),
    ],
)  # fmt: skip
def test_a_path_of_another_user_is_forbidden(path: str) -> None:
    """Checked at submission and again here: a job may be older than the rule."""
    storage = RecordingStorage({path: b"secret"})
    with pytest.raises(ReferenceForbidden) as raised:
        resolver(storage).resolve(path, user_id="user-1")
    assert (raised.value.code, raised.value.message) == ("REFERENCE_FORBIDDEN", FORBIDDEN)
    assert storage.requested == []


def test_a_job_without_a_user_may_read_no_path() -> None:
    """The missing user id must not match a folder."""
    with pytest.raises(ReferenceForbidden):
        resolver().resolve("workspace-temp/None/a.png", user_id=None)


@pytest.mark.parametrize(
    "error",
    [None, StorageError("the disk is gone"), InvalidParameters("not a key", field="key")],
    ids=["nothing there", "storage away", "not a key"],
)
def test_a_path_that_cannot_be_read_is_an_unusable_reference(error: Exception | None) -> None:
    """The job falls back to its prompt, and its metadata has the reason."""
    failure = error_of(resolver(RecordingStorage(error=error)), "workspace-temp/user-1/a b.png")
    assert (failure.code, failure.message) == ("REFERENCE_FRAME_ERROR", NOT_FETCHED)


def test_every_kind_of_reference_has_the_same_limits(web: WebServer, save: Save) -> None:
    """A file that is too large for one kind must not be accepted by another."""
    noise = save(Image.effect_noise((90, 90), 90).convert("RGB"), "BMP") + bytes(LIMITS.max_bytes)
    path = "workspace-temp/user-1/a.bmp"
    assert error_of(resolver(RecordingStorage({path: noise})), path).message == TOO_LARGE
    uri = f"data:image/bmp;base64,{base64.b64encode(noise).decode()}"
    assert error_of(resolver(), uri).message == TOO_LARGE


def test_a_truncated_image_is_unreadable(web: WebServer) -> None:
    """The response was complete, so the message may say that the image is damaged."""
    assert error_of(resolver(None, web.netloc), f"http://{web.netloc}/cut").message == UNREADABLE


@pytest.mark.parametrize("kind", ["svg+xml", "png", "webp"])
def test_the_media_type_of_a_data_uri_is_ignored(kind: str) -> None:
    """SVG may fetch and run things, whatever its media type says."""
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()
    assert error_of(resolver(), f"data:image/{kind};base64,{svg}").message == UNREADABLE


def test_resolving_twice_returns_two_images(png: bytes) -> None:
    """A job that changes its image must not affect the next."""
    path = "workspace-temp/user-1/a.png"
    references = resolver(RecordingStorage({path: png}))
    first = references.resolve(path, user_id="user-1").image
    first.paste("red", (0, 0, 30, 20))
    assert is_green(references.resolve(path, user_id="user-1").image)
    assert io.BytesIO(png).getvalue() == png
