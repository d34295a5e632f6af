"""From what a caller wrote to a picture, and one answer for everything that a URL may not tell."""

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
from ourvidz.references.resolve import FORBIDDEN, UNFETCHED, Limits, References

Save = Callable[..., bytes]
LIMITS = Limits(max_bytes=200_000, max_pixels=10_000)
TIMEOUT_S = 0.5
SLACK_S = 2.0


@pytest.fixture
def picture(save: Save) -> bytes:
    """A small green picture."""
    return save(Image.new("RGB", (30, 20), "green"), "PNG")


class Web:
    """A real HTTP server on a free loopback port."""

    def __init__(self, pages: dict[str, tuple[int, str, bytes]]) -> None:
        over = self.over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/silent":
                    over.wait(30)
                    return
                status, kind, body = pages.get(self.path.partition("?")[0], (404, "text/plain", b"not here"))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Standard error stays quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.netloc = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web(picture: bytes) -> Iterator[Web]:
    """A server with a picture, and with things that are none."""
    made = Web(
        {
            "/a.png": (200, "application/octet-stream", picture),
            "/page": (200, "image/png", b"<html>" + bytes(100)),
            "/cut": (200, "image/png", picture[:60]),
            "/denied": (403, "image/png", picture),
        }
    )
    yield made
    made.close()


class Shelf:
    """A reader that keeps what it was asked for."""

    def __init__(self, kept: dict[str, bytes] | None = None, error: Exception | None = None) -> None:
        self.kept = kept or {}
        self.error = error
        self.asked: list[str] = []

    def __call__(self, path: str) -> bytes:
        self.asked.append(path)
        if self.error:
            raise self.error
        if path not in self.kept:
            raise NotFound("There is nothing.", field="key", value=path)
        return self.kept[path]


def references(shelf: Shelf | None = None, *allowed: str) -> References:
    """References with a real fetcher."""
    fetcher = Fetcher(EgressPolicy(allowed), timeout_s=TIMEOUT_S, max_bytes=LIMITS.max_bytes)
    return References(fetcher.get, shelf or Shelf(), LIMITS)


def refused(use: References, reference: str, user_id: str | None = "user-1") -> ReferenceFrameError:
    with pytest.raises(ReferenceFrameError) as found:
        use.resolve(reference, user_id=user_id)
    return found.value


def is_green(image: Image.Image) -> bool:
    return (image.mode, image.size, image.getpixel((5, 5))) == ("RGB", (30, 20), (0, 128, 0))


def test_a_url_becomes_a_picture(web: Web) -> None:
    """The commonest reference."""
    assert is_green(references(None, web.netloc).resolve(f"http://{web.netloc}/a.png?x=1", user_id="user-1"))


def test_a_data_uri_becomes_a_picture(picture: bytes) -> None:
    """What a browser makes of a dropped file."""
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    assert is_green(references().resolve(uri, user_id=None))


@pytest.mark.parametrize("bucket", READ_BUCKETS)
def test_a_storage_path_becomes_a_picture(picture: bytes, bucket: str) -> None:
    """Earlier results and uploads are referred to by where they lie."""
    path = f"{bucket}/user-1/some/a.png"
    assert is_green(references(Shelf({path: picture})).resolve(path, user_id="user-1"))


def closed_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("path", ["/missing", "/denied", "/page", "/silent"])
def test_a_url_tells_nothing_of_why(web: Web, path: str) -> None:
    """Refused, closed, late, missing and not a picture look alike, or we would scan ports for a caller."""
    port = closed_port()
    use = references(None, web.netloc, f"127.0.0.1:{port}")
    began = time.monotonic()
    told = [
        refused(use, url)
        for url in (f"http://{web.netloc}{path}", f"http://127.0.0.1:{port}/", "http://127.0.0.1:1/", "http://10.0.0.1/")
    ]  # fmt: skip
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    assert {(e.code, e.message, e.field, e.rule, e.value) for e in told} == {
        ("REFERENCE_FRAME_ERROR", UNFETCHED, "reference", None, None)
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
    """The door refuses most of these; a job from elsewhere must not get further."""
    error = refused(references(), reference)
    assert (error.code, error.message) == ("REFERENCE_FRAME_ERROR", UNFETCHED)


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
def test_a_path_of_somebody_else_is_forbidden(path: str) -> None:
    """Checked at the door and again here: a job may be older than the door's rule."""
    shelf = Shelf({path: b"secret"})
    with pytest.raises(ReferenceForbidden) as found:
        references(shelf).resolve(path, user_id="user-1")
    assert (found.value.code, found.value.message) == ("REFERENCE_FORBIDDEN", FORBIDDEN)
    assert shelf.asked == []


def test_a_job_without_a_user_owns_no_path() -> None:
    """Nobody's files are nobody's to read."""
    with pytest.raises(ReferenceForbidden):
        references().resolve("workspace-temp/None/a.png", user_id=None)


@pytest.mark.parametrize(
    "error",
    [None, StorageError("the disk is gone"), InvalidParameters("not a key", field="key")],
    ids=["nothing there", "storage away", "not a key"],
)
def test_what_storage_does_not_give_is_an_unusable_reference(error: Exception | None) -> None:
    """The job falls back to its prompt, and its metadata says why."""
    found = refused(references(Shelf(error=error)), "workspace-temp/user-1/a b.png")
    assert (found.code, found.message) == ("REFERENCE_FRAME_ERROR", UNFETCHED)


def test_every_kind_of_reference_has_the_same_limits(web: Web, save: Save) -> None:
    """What is too large for one way in must not come in by another."""
    noise = save(Image.effect_noise((90, 90), 90).convert("RGB"), "BMP") + bytes(LIMITS.max_bytes)
    path = "workspace-temp/user-1/a.bmp"
    assert refused(references(Shelf({path: noise})), path).message == TOO_LARGE
    uri = f"data:image/bmp;base64,{base64.b64encode(noise).decode()}"
    assert refused(references(), uri).message == TOO_LARGE


def test_a_picture_that_breaks_off_is_unreadable(web: Web) -> None:
    """It arrived whole and is damaged; that much a caller may know."""
    assert refused(references(None, web.netloc), f"http://{web.netloc}/cut").message == UNREADABLE


@pytest.mark.parametrize("kind", ["svg+xml", "png", "webp"])
def test_a_data_uri_is_what_its_bytes_are(kind: str) -> None:
    """SVG fetches and runs things; a label does not make it a picture."""
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()
    assert refused(references(), f"data:image/{kind};base64,{svg}").message == UNREADABLE


def test_resolving_twice_gives_two_pictures(picture: bytes) -> None:
    """What one job does to its picture is not seen by the next."""
    path = "workspace-temp/user-1/a.png"
    use = references(Shelf({path: picture}))
    first = use.resolve(path, user_id="user-1")
    first.paste("red", (0, 0, 30, 20))
    assert is_green(use.resolve(path, user_id="user-1"))
    assert io.BytesIO(picture).getvalue() == picture
