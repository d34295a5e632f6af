"""`ourvidz worker`: the names, queues and pools of the processes, and what is refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ourvidz.cli import worker
from ourvidz.cli.main import cli
from ourvidz.cli.worker import (
    FAMILIES,
    HELPERS,
    celery_options,
    check_models,
    default_families,
    parse_families,
)
from ourvidz.errors import SettingsError
from ourvidz.ledger.store import Ledger
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.settings import load_settings, settings
from ourvidz.wiring import control
from tests.factories import worker as record_of_worker


@pytest.mark.parametrize(("name", "queue"), [("sdxl", "sdxl_queue"), ("wan", "wan_queue")])
def test_every_worker_has_its_own_queue(name: str, queue: str) -> None:
    """A worker has the models of one family."""
    assert celery_options(name, load_settings(_env_file=None))["queues"] == [queue]


def test_the_celery_node_name_is_the_worker_id() -> None:
    """Remote control and the ledger must use the same name."""
    settings = load_settings(OURVIDZ_GPU="1", _env_file=None)
    assert celery_options("sdxl", settings)["hostname"] == settings.worker_id("sdxl")
    assert settings.worker_id("sdxl").endswith("-gpu1")


def test_a_gpu_worker_runs_one_job_and_prefetches_none() -> None:
    """Another worker could run the job that a busy worker has prefetched."""
    options = celery_options("sdxl", load_settings(_env_file=None))
    assert (options["concurrency"], options["prefetch_multiplier"]) == (1, 1)


def test_an_unknown_worker_is_one_line_with_the_known_names() -> None:
    """Not a traceback."""
    for command in (["worker", "sdlx"], ["up", "--no-flower", "--workers", "sdlx"]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2
        assert "no worker 'sdlx'" in result.stderr
        assert "sdxl" in result.stderr
        assert "Traceback" not in result.output


def test_a_worker_of_an_earlier_release_is_named_with_what_replaces_it() -> None:
    """An operator with a Procfile of his own learns what to change."""
    result = CliRunner().invoke(cli, ["worker", "clock"])
    assert result.exit_code == 2
    assert "keepers sweep on timers of their own" in result.stderr


def test_worker_names_are_separated_by_commas_or_spaces() -> None:
    """Duplicates count once; an empty list is an error, not a stack without workers."""
    assert parse_families("wan, sdxl wan") == ("wan", "sdxl")
    with pytest.raises(SettingsError, match="names no worker"):
        parse_families(" , ")


def test_the_default_workers_are_those_with_a_model(tmp_path: Path, production: dict[str, str]) -> None:
    """All of them in the tiny profile; in production only those whose model is set."""
    assert default_families(load_settings(_env_file=None)) == FAMILIES
    production["OURVIDZ_SDXL_MODEL"] = str(tmp_path)
    assert default_families(load_settings(_env_file=None, **production)) == ("sdxl",)
    for variable, added in (("OURVIDZ_WAN_MODEL", "wan"), ("OURVIDZ_QWEN_MODEL", "chat")):
        both = load_settings(_env_file=None, **production, **{variable: tmp_path})
        assert default_families(both) == ("sdxl", added)
    servers = {"OURVIDZ_QWEN_INSTRUCT_URL": "http://127.0.0.1:1/v1"}
    assert default_families(load_settings(_env_file=None, **production, **servers)) == ("sdxl", "chat")


def test_a_production_worker_without_its_model_is_refused_and_the_others_are_not(
    tmp_path: Path, production: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host for clips needs no model for images, and no worker falls back to the tiny checkpoint."""
    for name, value in {**production, "OURVIDZ_WAN_MODEL": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    try:
        assert default_families(load_settings(_env_file=None)) == ("wan",)
        for command in (["worker", "sdxl"], ["up", "--no-flower", "--workers", "wan,sdxl"]):
            refused = CliRunner().invoke(cli, command)
            assert (refused.exit_code, "OURVIDZ_SDXL_MODEL" in refused.stderr) == (2, True), refused.output
        own = load_settings(_env_file=None, OURVIDZ_MODELS="ours.models:build")
        assert default_families(own) == FAMILIES, "a model builder of the operator's needs no checkpoints"
        monkeypatch.delenv("OURVIDZ_WAN_MODEL")
        with pytest.raises(SettingsError, match="no model is set"):
            default_families(load_settings(_env_file=None))
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_chat_worker_with_one_of_its_two_models_is_refused(
    tmp_path: Path, production: dict[str, str]
) -> None:
    """It would fail at every start; the error has the missing variable."""
    half = production | {"OURVIDZ_QWEN_INSTRUCT_URL": "http://127.0.0.1:1/v1"}
    with pytest.raises(SettingsError, match="OURVIDZ_QWEN_BASE_URL"):
        check_models("chat", load_settings(_env_file=None, **half))
    for second in ({"OURVIDZ_QWEN_BASE_URL": "http://127.0.0.1:1/v1"}, {"OURVIDZ_QWEN_MODEL": tmp_path}):
        check_models("chat", load_settings(_env_file=None, **half, **second))


def test_only_the_shim_takes_sockets() -> None:
    """For the other processes the option is an error; it is not ignored."""
    assert CliRunner().invoke(cli, ["worker", "io", "--fd", "3"]).exit_code == 2


def test_a_worker_with_an_invalid_certificate_refuses_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_chain: Any
) -> None:
    """One line with the variable, before anything is loaded."""
    variables = make_chain().variables(tmp_path) | {"OURVIDZ_C2PA_KEY": str(tmp_path / "gone.pem")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    result = CliRunner().invoke(cli, ["worker", "sdxl"])
    monkeypatch.undo()
    settings.cache_clear()
    assert result.exit_code == 2
    assert (
        result.output.strip()
        == f"Error: OURVIDZ_C2PA_KEY: {tmp_path / 'gone.pem'} cannot be read: No such file or directory"
    )


@pytest.fixture
def uncollected_process() -> Iterator[int]:
    """The id of a process that has ended, and whose exit status nobody has read."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the state of a process is read in /proc")
def test_a_worker_that_was_killed_can_be_started_again_at_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, uncollected_process: int
) -> None:
    """Its heartbeat lasts for some seconds, and in a container the first process may collect it late or
    never: it is no worker that runs."""
    monkeypatch.setenv("OURVIDZ_REDIS_URL", redis_url)
    settings = load_settings(_env_file=None)
    started: list[str] = []
    monkeypatch.setattr(worker, "_run_celery", started.append)
    with closing(Ledger(redis_url)) as ledger, control.using(control.build(settings, ledger=ledger)):
        ledger.heartbeat(record_of_worker(id=settings.worker_id("sdxl"), pid=uncollected_process))
        result = CliRunner().invoke(cli, ["worker", "sdxl"])
    assert (result.exit_code, started) == (0, ["sdxl"]), result.output


def test_the_names_do_not_overlap() -> None:
    """Every name stands for one process."""
    assert not set(FAMILIES) & set(HELPERS)


@pytest.mark.parametrize("former", [False, True], ids=["it runs", "it was this process of the container"])
def test_a_second_worker_with_the_same_id_is_refused(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, former: bool
) -> None:
    """When one stops, it would requeue the running job of the other. A container that was killed starts again
    with the same process ids, while its heartbeat is still there."""
    monkeypatch.setenv("OURVIDZ_REDIS_URL", redis_url)
    settings = load_settings(_env_file=None)
    ledger = Ledger(redis_url)
    heartbeat = Heartbeat(
        ledger,
        worker_id=settings.worker_id("sdxl"),
        family="sdxl",
        queue="sdxl_queue",
        pid=os.getpid() if former else os.getppid(),
        gpu=None,
        presence_s=15,
    )
    heartbeat.start()
    started: list[str] = []
    monkeypatch.setattr(worker, "_run_celery", started.append)
    with control.using(control.build(settings, ledger=ledger)):
        result = CliRunner().invoke(cli, ["worker", "sdxl"])
    heartbeat.stop()
    ledger.close()
    if former:
        assert (result.exit_code, started) == (0, ["sdxl"]), result.output
    else:
        assert (result.exit_code, started) == (2, [])
        assert f"runs already, as process {os.getppid()}" in result.output
