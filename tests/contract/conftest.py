"""Fixtures: the job system behind the real application, and an image server for the samples' URLs."""

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
    """An image of a kind that the tiny checkpoints know, 160x128 pixels."""
    image = Image.new("RGB", (160, 128), COLOURS["white"])
    ImageDraw.Draw(image).ellipse((48, 32, 112, 96), COLOURS["red"])
    return image


class ImageHandler(BaseHTTPRequestHandler):
    """Serves the same image under every path."""

    def do_GET(self) -> None:
        file = io.BytesIO()
        red_circle().save(file, "PNG")
        self.send_response(200)
        self.send_header("Content-Length", str(len(file.getvalue())))
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep standard error empty."""


@pytest.fixture
def reference_image() -> Image.Image:
    """The image that `host` serves."""
    return red_circle()


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """`host:port` of an image server, for the URLs in the samples."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def running(tmp_path: Path, ourvidz_callbacks: CallbackRecorder, host: str) -> Iterator[Eager]:
    """The job system in this process; it may fetch references from `host`."""
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_FETCH_ALLOWED_HOSTS=host) as system:
        yield system


@pytest.fixture
def client(running: Eager) -> Iterator[TestClient]:
    """A client of the real application in front of `running`."""
    with TestClient(create_app(running.control), base_url="http://127.0.0.1:7860") as opened:
        yield opened
