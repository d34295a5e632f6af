"""`ourvidz worker NAME`: runs one of the processes in the foreground, until a stop signal."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ourvidz import prespawn, startup
from ourvidz.cli.libraries import require_libraries
from ourvidz.cli.storage_access import require_storage_access
from ourvidz.errors import SettingsError
from ourvidz.jobs.catalog import QUEUES
from ourvidz.liveness.beats import start_beating
from ourvidz.settings import Settings, become_worker, settings

if TYPE_CHECKING:
    from celery import Celery

FAMILIES = tuple(QUEUES)
"""The workers that hold models, one per queue of jobs."""
HELPERS = ("io", "keeper", "web")
"""The processes without models."""
USE_STORAGE = frozenset({"sdxl", "wan", "keeper", "web"})
"""The processes that read, write or delete stored files."""
MODEL_VARIABLES = {
    "sdxl": "OURVIDZ_SDXL_MODEL",
    "wan": "OURVIDZ_WAN_MODEL",
    "chat": "OURVIDZ_QWEN_MODEL, or OURVIDZ_QWEN_INSTRUCT_URL and OURVIDZ_QWEN_BASE_URL",
}
"""The variables that name a family's models; the production profile requires them."""

_ENDED_STATES = frozenset("ZX")
"""States in `/proc/PID/stat` of a process that runs no more: a zombie, or a dead one."""
FORMER = {
    "clock": "there is no worker 'clock' any more: keepers sweep on timers of their own. Remove"
    " `ourvidz worker clock` from your Procfile or supervisor; `ourvidz worker keeper` is all that is needed"
}
"""Processes of earlier releases, and what replaces them."""


def check_family(name: str) -> str:
    """The name, if it is that of a family. Raises `SettingsError` with the names that exist."""
    if name in FORMER:
        raise SettingsError(FORMER[name], field="worker")
    if name not in FAMILIES:
        raise SettingsError(
            f"there is no worker {name!r}; there are {', '.join((*FAMILIES, *HELPERS))}", field="worker"
        )
    return name


def parse_families(text: str) -> tuple[str, ...]:
    """The families in a list separated by commas or spaces, without duplicates.

    Raises `SettingsError` for an unknown name or an empty list.
    """
    names = tuple(dict.fromkeys(check_family(name) for name in text.replace(",", " ").split()))
    if not names:
        raise SettingsError("--workers names no worker", field="workers")
    return names


def default_families(settings: Settings) -> tuple[str, ...]:
    """The families that have at least one model: all of them in the tiny profile.

    Raises `SettingsError` when no model is set.
    """
    families = tuple(name for name in FAMILIES if any(_has_models(name, settings)))
    if not families:
        raise SettingsError(f"no model is set: set {'; '.join(MODEL_VARIABLES.values())}", field="workers")
    return families


def check_models(family: str, settings: Settings) -> None:
    """Raise `SettingsError`, with the missing variables, when a family lacks one of its models."""
    if not all(_has_models(family, settings)):
        raise SettingsError(
            f"the production profile's {family} worker needs {MODEL_VARIABLES[family]}", field="worker"
        )


def _has_models(family: str, settings: Settings) -> tuple[bool, ...]:
    """For each model of a family, whether the settings name it. With `OURVIDZ_MODELS` set, always true: the
    operator's own builder decides which models it needs."""
    always = settings.profile == "tiny" or settings.models != Settings.model_fields["models"].default
    urls = (settings.qwen_instruct_url, settings.qwen_base_url)
    models: dict[str, tuple[object, ...]] = {
        "sdxl": (settings.sdxl_model,),
        "wan": (settings.wan_model,),
        "chat": tuple(settings.qwen_model or url for url in urls),
    }
    return tuple(always or model is not None for model in models[family])


def celery_options(name: str, settings: Settings) -> dict[str, Any]:
    """The options of this Celery worker: its queue, and one child that prefetches no job. The pool is that of
    the configuration."""
    return {
        "hostname": settings.worker_id(name),
        "queues": [QUEUES[name]],
        "concurrency": 1,
        "prefetch_multiplier": 1,
        "task_events": True,
        "without_gossip": True,
        "without_mingle": True,
        "loglevel": settings.log_level,
    }


def celery_application() -> Celery:
    """The Celery application with its tasks, and what its worker imports. Celery's command line is left out:
    it imports a terminal library and Flower, a quarter of a second and 14 MiB in each worker."""
    with startup.collector_paused():
        from ourvidz.app import app

        app.loader.import_default_modules()
        import_module("celery.apps.worker")
    return app


def _require_unique_id(worker_id: str) -> None:
    """Raise `SettingsError` if a worker with this id runs: both would hand back each other's jobs.

    One that had the process id of this process has ended: in a container, ids begin anew with each start.
    """
    from ourvidz.wiring import control

    for other in control.current().ledger.workers():
        ended = other.state == "offline" or other.pid == os.getpid() or not _process_exists(other.pid)
        if other.id == worker_id and not ended:
            raise SettingsError(
                f"a worker {worker_id} runs already, as process {other.pid}: stop it, or set OURVIDZ_GPU",
                field="OURVIDZ_GPU",
            )


def _require_no_eviction() -> None:
    """In the production profile, raise `SettingsError` if the Redis server may delete queued jobs."""
    if settings().profile == "production":
        from ourvidz.cli import broker_checks

        broker_checks.require_no_eviction(settings())


def _require_signing_certificate() -> None:
    """Raise `SettingsError` if the C2PA certificate is set and invalid: every job would fail."""
    from ourvidz.wiring import signing

    signing.signer(settings())


def _require_storage(name: str) -> None:
    """Raise `SettingsError` if the storage refuses a process that uses it: every job would fail."""
    if name in USE_STORAGE:
        require_storage_access(settings())


def _process_exists(pid: int) -> bool:
    """Whether a process runs. One of which only its exit status is left does not: in a container the first
    process may collect it late, or never."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] not in _ENDED_STATES


def _requeue_held_jobs(name: str) -> None:
    """Requeue the job that a cold shutdown interrupted. Celery has no signal for a cold shutdown."""
    from ourvidz import dispatch

    if name in FAMILIES:
        for job_id in dispatch.requeue_held_jobs(settings().worker_id(name)):
            click.echo(f"{job_id} was interrupted and is queued again", err=True)


@click.command(short_help="Run one process.")
@click.argument("name")
@click.option("--fd", "fds", type=int, multiple=True, help="web only: a listening socket to serve on.")
def worker(name: str, fds: tuple[int, ...]) -> None:
    """Run one process in the foreground: web, sdxl, wan, chat, io or keeper."""
    if name not in HELPERS:
        check_family(name)
    if fds and name != "web":
        raise click.UsageError("--fd is for web only")
    become_worker(name, settings().gpu)
    if name in FAMILIES:
        check_models(name, settings())
        require_libraries(settings())
        with prespawn.interpreter():
            _require_storage(name)
            _require_signing_certificate()
            _require_unique_id(settings().worker_id(name))
            _run_celery(name)
    else:
        _run_control(name, list(fds))


def _run_control(name: str, fds: list[int]) -> None:
    """Run a process that is no Celery worker."""
    _require_storage(name)
    _require_no_eviction()
    if name == "web":
        with startup.collector_paused():
            from ourvidz.web import serve

        startup.mark("imported")
        serve.run(settings(), fds)
    elif name == "io":
        start_beating(settings().beats_dir, "process")
        with startup.collector_paused():
            from ourvidz import delivery

        startup.mark("imported")
        delivery.run(settings())
    else:
        with startup.collector_paused():
            from ourvidz.keeper import process

        startup.mark("imported")
        process.run(settings())


def _run_celery(name: str) -> None:
    """Run a GPU worker."""
    _require_no_eviction()
    start_beating(settings().beats_dir, "process")
    app = celery_application()
    startup.mark("imported")
    try:
        app.Worker(**celery_options(name, settings())).start()
    finally:
        _requeue_held_jobs(name)
