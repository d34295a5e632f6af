"""The processes of `ourvidz up`: their environment, their sockets, and how they are stopped."""

from __future__ import annotations

import re
import signal
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


def child_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **variables: Any) -> dict[str, str]:
    """The environment of the stack's processes, where the operator has set these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    state = StateDir(tmp_path)
    endpoints = stack.Endpoints(SHIM, REDIS, None, (5,))
    return stack.child_env(load_settings(_env_file=None), state, state.secrets(), endpoints)


def test_by_default_callbacks_go_signed_to_the_shims_inbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks and their signatures work without any configuration."""
    env = child_env(tmp_path, monkeypatch)
    secrets = StateDir(tmp_path).secrets()
    assert env["OURVIDZ_CALLBACK_URL"] == f"{SHIM}/functions/v1/job-callback"
    assert env["JOB_CALLBACK_SECRET"] == secrets.callback_secret
    assert env["OURVIDZ_WEBHOOK_SECRET"] == secrets.webhook_secret
    assert env["OURVIDZ_PUBLIC_URL"] == SHIM
    assert env["OURVIDZ_REDIS_URL"] == REDIS
    assert env["OURVIDZ_STATE_DIR"] == str(tmp_path)


def test_workers_know_the_port_of_the_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are registered with it; a list of the operator's that contains it stays."""
    port = SHIM.rpartition(":")[2]
    assert child_env(tmp_path, monkeypatch)["OURVIDZ_PORTS"] == port
    assert child_env(tmp_path, monkeypatch, OURVIDZ_PORTS=f"9 {port}")["OURVIDZ_PORTS"] == f"9 {port}"


def test_the_operators_receiver_is_kept_and_gets_no_generated_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not verify signatures of secrets that it does not know."""
    env = child_env(tmp_path, monkeypatch, SUPABASE_URL="https://project.example")
    assert "OURVIDZ_CALLBACK_URL" not in env
    assert "JOB_CALLBACK_SECRET" not in env
    settings = Settings(SUPABASE_URL=env["SUPABASE_URL"], _env_file=None)
    assert settings.default_callback_url == "https://project.example/functions/v1/job-callback"


def test_the_operators_secrets_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver verifies with them; only a missing one is generated."""
    env = child_env(tmp_path, monkeypatch, JOB_CALLBACK_SECRET="known")
    assert env["JOB_CALLBACK_SECRET"] == "known"
    assert env["OURVIDZ_WEBHOOK_SECRET"].startswith("whsec_")


def test_files_in_the_working_directory_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `flower.py` or `redis.py` in the folder where `ourvidz up` is called must not run."""
    (tmp_path / "flower.py").write_text("raise SystemExit('the wrong flower')")
    monkeypatch.chdir(tmp_path)
    env = child_env(tmp_path, monkeypatch)
    argv = (*stack.PYTHON_M, "ourvidz.cli.main", "worker", "--help")
    assert subprocess.run(argv, env=env, capture_output=True).returncode == 0
    flower = subprocess.run(
        (*stack.PYTHON_M, "celery", "flower", "--help"), env=env, capture_output=True, text=True
    )
    assert "the wrong flower" not in flower.stdout + flower.stderr


def test_only_the_shim_inherits_the_listening_sockets(tmp_path: Path) -> None:
    """Another process would keep the port open after the shim has stopped."""
    endpoints = stack.Endpoints(SHIM, REDIS, 5555, (5, 6))
    specs = {spec.name: spec for spec in stack.process_specs(("sdxl",), StateDir(tmp_path), endpoints, {})}
    assert set(specs) == {"sdxl", "web", "io", "keeper", "flower"}
    assert specs["web"].argv[-4:] == ("--fd", "5", "--fd", "6")
    assert {name for name, spec in specs.items() if spec.pass_fds} == {"web"}


def test_a_port_in_use_is_a_settings_error_with_the_option() -> None:
    """The message has the port, and the option that chooses another."""
    with stack.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert stack.url_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(SettingsError, match=rf"--port: 127\.0\.0\.1:{port} cannot be used"):
            stack.listen("127.0.0.1", port)


def test_a_connection_waits_while_the_shim_restarts() -> None:
    """`ourvidz up` holds the listening socket: no connection is refused between two shim processes."""
    with stack.listen("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname(), timeout=5):
        pass


def test_the_procfile_names_the_same_processes() -> None:
    """A supervisor that reads it runs what `ourvidz up` runs."""
    lines = (Path(ourvidz.__file__).parents[1] / "Procfile").read_text().splitlines()
    commands = dict(re.fullmatch(r"(\w+): (.+)", line).groups() for line in lines)  # type: ignore[union-attr, misc]
    assert set(commands) == {*FAMILIES, *HELPERS, "flower"}
    assert all(commands[name] == f"ourvidz worker {name}" for name in (*FAMILIES, *HELPERS))


def test_a_worker_has_its_drain_limit_and_time_to_hand_its_job_back() -> None:
    """It requeues the job by itself. A process without a job is not given the time to finish one."""
    assert stack.drain_steps(30)[0] == (signal.SIGTERM, 30 + stack.HAND_BACK_S)
    assert [signum for signum, _ in stack.drain_steps(30)] == [signal.SIGTERM, signal.SIGKILL]
    assert [signum for signum, _ in stack.STOP_STEPS] == [signal.SIGTERM, signal.SIGKILL]
