"""`ourvidz worker`: who is who."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ourvidz.cli.main import cli
from ourvidz.cli.worker import FAMILIES, HELPERS, arguments, check_model, default_families, families_of
from ourvidz.errors import SettingsError
from ourvidz.ledger.store import Ledger
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.settings import load_settings, settings
from ourvidz.wiring import control


def value(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


@pytest.mark.parametrize(
    ("name", "queue", "pool"),
    [
        ("sdxl", "sdxl_queue", "prefork"),
        ("wan", "wan_queue", "prefork"),
        ("io", "callbacks", "threads"),
        ("keeper", "maintenance", "threads"),
    ],
)
def test_every_worker_has_its_own_queue_and_pool(name: str, queue: str, pool: str) -> None:
    """A receiver that hangs must not stop recovery, and recovery must not stop generation."""
    argv = arguments(name, load_settings(_env_file=None))
    assert argv[0] == "worker"
    assert value(argv, "-Q") == queue
    assert value(argv, "-P") == pool


def test_a_worker_is_called_what_it_announces_itself_as() -> None:
    """Remote control and the ledger must mean the same worker."""
    chosen = load_settings(OURVIDZ_GPU="1", _env_file=None)
    assert value(arguments("sdxl", chosen), "-n") == chosen.worker_id("sdxl")
    assert value(arguments("sdxl", chosen), "-n").endswith("-gpu1")


def test_one_gpu_worker_runs_one_job_and_holds_no_other() -> None:
    """A job held back by a busy worker could have run elsewhere."""
    argv = arguments("sdxl", load_settings(_env_file=None))
    assert value(argv, "-c") == "1"
    assert "--prefetch-multiplier=1" in argv


def test_a_worker_that_is_not_there_is_one_clear_line() -> None:
    """No traceback, and the names that would work."""
    for command in (["worker", "sdlx"], ["up", "--no-flower", "--workers", "sdlx"]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2
        assert "no worker 'sdlx'" in result.stderr
        assert "sdxl" in result.stderr
        assert "Traceback" not in result.output


def test_the_workers_may_be_named_with_commas_or_spaces() -> None:
    """A name given twice is one worker; no name at all is a mistake, not an empty stack."""
    assert families_of("wan, sdxl wan") == ("wan", "sdxl")
    with pytest.raises(SettingsError, match="names no worker"):
        families_of(" , ")


def test_by_default_everything_runs_that_has_a_checkpoint(tmp_path: Path) -> None:
    """The tiny profile serves clips out of the box; production starts no worker that could not load."""
    assert default_families(load_settings(_env_file=None)) == FAMILIES
    production = {
        "OURVIDZ_PROFILE": "production",
        "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
        "SUPABASE_URL": "http://127.0.0.1:1",
        "OURVIDZ_SDXL_MODEL": tmp_path,
    }
    assert default_families(load_settings(_env_file=None, **production)) == ("sdxl",)
    for variable, added in (("OURVIDZ_WAN_MODEL", "wan"), ("OURVIDZ_QWEN_MODEL", "chat")):
        both = load_settings(_env_file=None, **production, **{variable: tmp_path})
        assert default_families(both) == ("sdxl", added)
    elsewhere = {"OURVIDZ_QWEN_INSTRUCT_URL": "http://127.0.0.1:1/v1"}
    assert default_families(load_settings(_env_file=None, **production, **elsewhere)) == ("sdxl", "chat")


def test_a_production_worker_without_its_model_is_refused_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host for clips needs no model for pictures, and no worker falls back to the tiny one."""
    for name, value in {
        "OURVIDZ_PROFILE": "production",
        "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
        "SUPABASE_URL": "http://127.0.0.1:1",
        "OURVIDZ_WAN_MODEL": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    try:
        assert default_families(load_settings(_env_file=None)) == ("wan",)
        for command in (["worker", "sdxl"], ["up", "--no-flower", "--workers", "wan,sdxl"]):
            refused = CliRunner().invoke(cli, command)
            assert (refused.exit_code, "OURVIDZ_SDXL_MODEL" in refused.stderr) == (2, True), refused.output
        own = load_settings(_env_file=None, OURVIDZ_MODELS="ours.models:build")
        assert default_families(own) == FAMILIES, "who builds models of their own knows what they need"
        monkeypatch.delenv("OURVIDZ_WAN_MODEL")
        with pytest.raises(SettingsError, match="no model is set"):
            default_families(load_settings(_env_file=None))
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_chat_worker_with_one_of_its_two_models_is_refused(tmp_path: Path) -> None:
    """It could load neither, and would be started again and again; what is missing is said at once."""
    half = {
        "OURVIDZ_PROFILE": "production",
        "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
        "SUPABASE_URL": "http://127.0.0.1:1",
        "OURVIDZ_QWEN_INSTRUCT_URL": "http://127.0.0.1:1/v1",
    }
    with pytest.raises(SettingsError, match="OURVIDZ_QWEN_BASE_URL"):
        check_model("chat", load_settings(_env_file=None, **half))
    for rest in ({"OURVIDZ_QWEN_BASE_URL": "http://127.0.0.1:1/v1"}, {"OURVIDZ_QWEN_MODEL": tmp_path}):
        check_model("chat", load_settings(_env_file=None, **half, **rest))


def test_only_the_shim_takes_sockets() -> None:
    """A misplaced option is an error, not silence."""
    assert CliRunner().invoke(cli, ["worker", "io", "--fd", "3"]).exit_code == 2


def test_a_worker_that_could_not_sign_refuses_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_chain: Any
) -> None:
    """One line with the variable, before anything is loaded."""
    variables = make_chain().variables(tmp_path) | {"OURVIDZ_C2PA_KEY": str(tmp_path / "gone.pem")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    answer = CliRunner().invoke(cli, ["worker", "sdxl"])
    monkeypatch.undo()
    settings.cache_clear()
    assert answer.exit_code == 2
    assert (
        answer.output.strip()
        == f"Error: OURVIDZ_C2PA_KEY: {tmp_path / 'gone.pem'} cannot be read: No such file or directory"
    )


def test_the_names_do_not_overlap() -> None:
    """One name, one process."""
    assert not set(FAMILIES) & set(HELPERS)


def test_a_second_worker_of_one_name_is_refused(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take each other's jobs for their own when one of them stops."""
    monkeypatch.setenv("OURVIDZ_REDIS_URL", redis_url)
    chosen = load_settings(_env_file=None)
    ledger = Ledger(redis_url)
    heartbeat = Heartbeat(
        ledger,
        worker_id=chosen.worker_id("sdxl"),
        family="sdxl",
        queue="sdxl_queue",
        pid=os.getpid(),
        gpu=None,
        presence_s=15,
    )
    heartbeat.start()
    with control.using(control.build(chosen, ledger=ledger)):
        answer = CliRunner().invoke(cli, ["worker", "sdxl"])
    heartbeat.stop()
    ledger.close()
    assert answer.exit_code == 2
    assert f"runs already, as process {os.getpid()}" in answer.output
