"""The job system behind its real application, and a host of pictures in the place of the one samples name."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.web.main import create_app
from training.scenes import COLOURS


def red_circle() -> Image.Image:
    image = Image.new("RGB", (160, 128), COLOURS["white"])
    ImageDraw.Draw(image).ellipse((48, 32, 112, 96), COLOURS["red"])
    return image


class Pictures(BaseHTTPRequestHandler):
    """Serves the same picture under every path."""

    def do_GET(self) -> None:
        file = io.BytesIO()
        red_circle().save(file, "PNG")
        self.send_response(200)
        self.send_header("Content-Length", str(len(file.getvalue())))
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, format: str, *args: Any) -> None:
        """Standard error stays quiet."""


@pytest.fixture
def sun() -> Image.Image:
    """The picture that `host` serves: wider than high, of a kind that the tiny checkpoints know."""
    return red_circle()


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """`host:port` of a server with pictures, in the place of the one that the samples name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def running(tmp_path: Path, ourvidz_callbacks: CallbackRecorder, host: str) -> Iterator[Eager]:
    """The job system in this process; it may fetch from `host`."""
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_FETCH_ALLOWED_HOSTS=host) as system:
        yield system


@pytest.fixture
def client(running: Eager) -> Iterator[TestClient]:
    """The real application in front of it."""
    with TestClient(create_app(running.control), base_url="http://127.0.0.1:7860") as opened:
        yield opened
