"""Settings of both profiles, and servers that the checks of `ourvidz doctor` call."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ourvidz.settings import Settings, load_settings

SERVER_KEY = "a-key-of-that-server"


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Load settings from variables, with a state directory of the test and without the `.env` file."""

    def make(**variables: Any) -> Settings:
        return load_settings(**{"OURVIDZ_STATE_DIR": tmp_path, "_env_file": None} | variables)

    return make


@pytest.fixture
def production() -> dict[str, str]:
    """The variables that the production profile requires besides the checkpoints. Nothing listens there."""
    return {
        "OURVIDZ_PROFILE": "production",
        "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
        "SUPABASE_URL": "http://127.0.0.1:1",
    }


@pytest.fixture
def unused_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class ModelServer(BaseHTTPRequestHandler):
    """An OpenAI-compatible server: lists its models to callers with the key, answers OPTIONS with 405."""

    def do_GET(self) -> None:
        authorized = self.headers["Authorization"] == f"Bearer {SERVER_KEY}" and self.path == "/v1/models"
        self._respond(200 if authorized else 401)

    def do_OPTIONS(self) -> None:
        self._respond(405)

    def _respond(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Write no access log."""


@pytest.fixture
def model_server_key() -> str:
    """The key that the model server accepts."""
    return SERVER_KEY


@pytest.fixture
def model_server() -> Iterator[str]:
    """The base URL of a running OpenAI-compatible server."""
    with HTTPServer(("127.0.0.1", 0), ModelServer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()
