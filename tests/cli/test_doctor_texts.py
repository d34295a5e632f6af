"""What `ourvidz doctor` says of the chat worker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ourvidz.cli.doctor_texts import check_moderation, check_qwen
from ourvidz.settings import load_settings

KEY = "a-key-of-that-server"


class Models(BaseHTTPRequestHandler):
    """A server that lists its models to whoever has the key."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {KEY}" and self.path == "/v1/models"
        self._answer(200 if known else 401)

    def do_OPTIONS(self) -> None:
        self._answer(405)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Standard error stays quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Models) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1"
        running.shutdown()
        thread.join()


@pytest.fixture
def nobody() -> str:
    """A URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def chosen(tmp_path: Path, **values: Any) -> Any:
    return load_settings(OURVIDZ_STATE_DIR=tmp_path, _env_file=None, **values)


def production(tmp_path: Path, **values: Any) -> Any:
    return chosen(
        tmp_path,
        OURVIDZ_PROFILE="production",
        OURVIDZ_REDIS_URL="redis://127.0.0.1:1/0",
        SUPABASE_URL="http://127.0.0.1:1",
        OURVIDZ_SDXL_MODEL=tmp_path,
        **values,
    )


def test_the_models_that_ship_are_found(tmp_path: Path) -> None:
    """Both of them: the chat worker needs both."""
    check = check_qwen(chosen(tmp_path))
    assert check.status == "ok"
    assert "tiny-qwen/instruct" in check.reason
    assert "tiny-qwen/base" in check.reason


def test_production_may_do_without_a_chat_worker(tmp_path: Path) -> None:
    """But a path that leads nowhere is a failure, and so is half of the models."""
    assert check_qwen(production(tmp_path)).status == "skipped"
    nowhere = check_qwen(production(tmp_path, OURVIDZ_QWEN_MODEL=tmp_path / "nowhere"))
    assert (nowhere.status, "nowhere" in nowhere.reason) == ("failed", True)
    assert "OURVIDZ_QWEN_MODEL" in nowhere.fix


def test_a_server_is_asked_for_its_models(tmp_path: Path, server: str, nobody: str) -> None:
    """With the key: a worker would find the same."""
    both = {"OURVIDZ_QWEN_INSTRUCT_URL": server, "OURVIDZ_QWEN_BASE_URL": server}
    assert check_qwen(production(tmp_path, **both, OURVIDZ_QWEN_KEY=KEY)).status == "ok"
    locked = check_qwen(production(tmp_path, **both))
    assert (locked.status, "401" in locked.reason) == ("failed", True)
    assert "OURVIDZ_QWEN_KEY" in locked.fix
    away = check_qwen(chosen(tmp_path, OURVIDZ_QWEN_BASE_URL=nobody))
    assert (away.status, "OURVIDZ_QWEN_BASE_URL" in away.fix) == ("failed", True)
    half = check_qwen(production(tmp_path, OURVIDZ_QWEN_INSTRUCT_URL=server, OURVIDZ_QWEN_KEY=KEY))
    assert (half.status, "OURVIDZ_QWEN_BASE_URL" in half.fix) == ("failed", True)


def test_a_moderation_that_nobody_answers_is_a_failure(tmp_path: Path, server: str, nobody: str) -> None:
    """Every job that asks for it would fail."""
    assert check_moderation(chosen(tmp_path)).status == "skipped"
    assert check_moderation(chosen(tmp_path, OURVIDZ_MODERATION_URL=f"{server}/moderations")).status == "ok"
    away = check_moderation(chosen(tmp_path, OURVIDZ_MODERATION_URL=nobody))
    assert (away.status, "OURVIDZ_MODERATION_URL" in away.fix) == ("failed", True)
