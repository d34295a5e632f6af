"""What `ourvidz up` runs, and in which environment."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ourvidz
from ourvidz.cli import stack
from ourvidz.cli.state import StateDir
from ourvidz.cli.worker import FAMILIES, HELPERS
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, load_settings

SHIM = "http://127.0.0.1:4321"
REDIS = "redis://:pw@127.0.0.1:1234/0"
RECEIVERS = ("SUPABASE_URL", "OURVIDZ_CALLBACK_URL", "OURVIDZ_PUBLIC_URL", "JOB_CALLBACK_SECRET",
             "OURVIDZ_WEBHOOK_SECRET")  # fmt: skip


@pytest.fixture(autouse=True)
def _no_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RECEIVERS:
        monkeypatch.delenv(name, raising=False)


def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> dict[str, str]:
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    state = StateDir(tmp_path)
    place = stack.Place(SHIM, REDIS, None, (5,))
    return stack.surroundings(load_settings(_env_file=None), state, state.secrets(), place)


def test_alone_the_callbacks_go_signed_to_the_shims_own_inbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop needs no configuration to see everything work, signatures included."""
    env = surroundings(tmp_path, monkeypatch)
    secrets = StateDir(tmp_path).secrets()
    assert env["OURVIDZ_CALLBACK_URL"] == f"{SHIM}/functions/v1/job-callback"
    assert env["JOB_CALLBACK_SECRET"] == secrets.callback_secret
    assert env["OURVIDZ_WEBHOOK_SECRET"] == secrets.webhook_secret
    assert env["OURVIDZ_PUBLIC_URL"] == SHIM
    assert env["OURVIDZ_REDIS_URL"] == REDIS
    assert env["OURVIDZ_STATE_DIR"] == str(tmp_path)


def test_a_real_receiver_stays_and_is_not_given_secrets_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the operator has set wins."""
    env = surroundings(tmp_path, monkeypatch, SUPABASE_URL="https://project.example")
    assert "OURVIDZ_CALLBACK_URL" not in env
    assert "JOB_CALLBACK_SECRET" not in env
    chosen = Settings(**{name: env[name] for name in ("SUPABASE_URL",)}, _env_file=None)
    assert chosen.default_callback_url == "https://project.example/functions/v1/job-callback"


def test_secrets_of_the_operator_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that verifies with a known secret must be able to."""
    env = surroundings(tmp_path, monkeypatch, JOB_CALLBACK_SECRET="known")
    assert env["JOB_CALLBACK_SECRET"] == "known"
    assert env["OURVIDZ_WEBHOOK_SECRET"].startswith("whsec_")


def test_files_in_the_working_directory_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's `flower.py` or `redis.py`, lying where `ourvidz up` was typed, must not run."""
    (tmp_path / "flower.py").write_text("raise SystemExit('the wrong flower')")
    monkeypatch.chdir(tmp_path)
    env = surroundings(tmp_path, monkeypatch)
    argv = (*stack.PYTHON_M, "ourvidz.cli.main", "worker", "--help")
    assert subprocess.run(argv, env=env, capture_output=True).returncode == 0
    looked = subprocess.run(
        (*stack.PYTHON_M, "celery", "flower", "--help"), env=env, capture_output=True, text=True
    )
    assert "the wrong flower" not in looked.stdout + looked.stderr


def test_only_the_shim_inherits_the_listening_sockets(tmp_path: Path) -> None:
    """Everyone else would keep the port open after the shim has gone."""
    place = stack.Place(SHIM, REDIS, 5555, (5, 6))
    specs = {spec.name: spec for spec in stack.processes(("sdxl",), StateDir(tmp_path), place, {})}
    assert set(specs) == {"sdxl", "web", "io", "keeper", "clock", "flower"}
    assert specs["web"].argv[-4:] == ("--fd", "5", "--fd", "6")
    assert {name for name, spec in specs.items() if spec.pass_fds} == {"web"}


def test_a_taken_port_is_one_clear_line() -> None:
    """The operator learns which port, and that --port chooses another."""
    with stack.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert stack.url_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(SettingsError, match=rf"--port: 127\.0\.0\.1:{port} cannot be used"):
            stack.listen("127.0.0.1", port)


def test_a_connection_waits_while_the_shim_restarts() -> None:
    """The socket belongs to the supervisor: between two shims nobody is refused."""
    with stack.listen("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname(), timeout=5):
        pass


def test_the_procfile_names_the_same_processes() -> None:
    """Whoever runs honcho gets what `ourvidz up` runs."""
    lines = (Path(ourvidz.__file__).parents[1] / "Procfile").read_text().splitlines()
    named = dict(re.fullmatch(r"(\w+): (.+)", line).groups() for line in lines)  # type: ignore[union-attr, misc]
    assert set(named) == {*FAMILIES, *HELPERS, "flower"}
    assert all(named[name] == f"ourvidz worker {name}" for name in (*FAMILIES, *HELPERS))
