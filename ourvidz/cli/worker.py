"""`ourvidz worker NAME`: be one of the processes, until told to stop."""

from __future__ import annotations

import logging
import os

import click

from ourvidz.errors import SettingsError
from ourvidz.jobs.catalog import QUEUES
from ourvidz.settings import Settings, become_worker, settings

FAMILIES = tuple(QUEUES)
"""The workers that hold models."""
HELPERS = ("io", "keeper", "clock", "web")
NEEDED = {
    "sdxl": "OURVIDZ_SDXL_MODEL",
    "wan": "OURVIDZ_WAN_MODEL",
    "chat": "OURVIDZ_QWEN_MODEL, or OURVIDZ_QWEN_INSTRUCT_URL and OURVIDZ_QWEN_BASE_URL",
}
"""What an operator sets for each on the production profile."""

_CHATTY = ("celery.beat", "celery.worker.strategy", "celery.app.trace")
_QUIET = ("--without-gossip", "--without-mingle", "-E")


def check_family(name: str) -> str:
    """The family, if there is one of this name. `SettingsError` names those there are."""
    if name not in FAMILIES:
        raise SettingsError(
            f"there is no worker {name!r}; there are {', '.join((*FAMILIES, *HELPERS))}", field="worker"
        )
    return name


def families_of(written: str) -> tuple[str, ...]:
    """The families in a list with commas or spaces, each once. `SettingsError` as for one, or for none."""
    names = tuple(dict.fromkeys(check_family(name) for name in written.replace(",", " ").split()))
    if not names:
        raise SettingsError("--workers names no worker", field="workers")
    return names


def default_families(chosen: Settings) -> tuple[str, ...]:
    """The families that have a model, or one of those they need: the tiny profile has one for each,
    production what was set. `SettingsError` when that is nothing."""
    found = tuple(name for name in FAMILIES if any(_models_of(name, chosen)))
    if not found:
        raise SettingsError(f"no model is set: set {'; '.join(NEEDED.values())}", field="workers")
    return found


def check_model(name: str, chosen: Settings) -> None:
    """Refuse to be a worker that could not load a model. `SettingsError` names what has to be set."""
    if not all(_models_of(name, chosen)):
        raise SettingsError(f"the production profile's {name} worker needs {NEEDED[name]}", field="worker")


def _models_of(name: str, chosen: Settings) -> tuple[bool, ...]:
    """Of every model that this worker loads, whether it is there. Who builds models of their own knows."""
    own = chosen.profile == "tiny" or chosen.models != Settings.model_fields["models"].default
    texts = (chosen.qwen_instruct_url, chosen.qwen_base_url)
    given: dict[str, tuple[object, ...]] = {
        "sdxl": (chosen.sdxl_model,),
        "wan": (chosen.wan_model,),
        "chat": tuple(chosen.qwen_model or url for url in texts),
    }
    return tuple(own or model is not None for model in given[name])


def arguments(name: str, chosen: Settings) -> list[str]:
    """What Celery is started with to be this worker."""
    level = ["-l", chosen.log_level]
    if name == "clock":
        return ["beat", "-S", "celery.beat.Scheduler", *level]
    node = ["worker", "-n", chosen.worker_id(name), *_QUIET, *level]
    if name == "io":
        return [*node, "-Q", "callbacks", "-P", "threads", "-c", "16"]
    if name == "keeper":
        # A thread, not solo: a sweep that hangs must not block remote control.
        return [*node, "-Q", "maintenance", "-P", "threads", "-c", "1"]
    return [*node, "-Q", QUEUES[name], "-P", "prefork", "-c", "1", "--prefetch-multiplier=1"]


def _refuse_namesake(worker_id: str) -> None:
    """Two workers of one name would take each other's jobs for their own. `SettingsError`."""
    from ourvidz.wiring import control

    for other in control.current().ledger.workers():
        if other.id == worker_id and other.state != "offline" and _runs(other.pid):
            raise SettingsError(
                f"a worker {worker_id} runs already, as process {other.pid}: stop it, or set OURVIDZ_GPU",
                field="OURVIDZ_GPU",
            )


def _refuse_wrong_certificate() -> None:
    """Better no worker than one that fails every job. `SettingsError`."""
    from ourvidz.wiring import signing

    signing.signer(settings())


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _requeue_held_jobs(name: str) -> None:
    """Queue again what a cold shutdown has interrupted. Here, because Celery has no signal for one."""
    from ourvidz import dispatch

    if name in FAMILIES:
        for job_id in dispatch.requeue_held_jobs(settings().worker_id(name)):
            click.echo(f"{job_id} was interrupted and is queued again", err=True)


@click.command(short_help="Be one process.")
@click.argument("name")
@click.option("--fd", "fds", type=int, multiple=True, help="web only: a listening socket to serve on.")
def worker(name: str, fds: tuple[int, ...]) -> None:
    """Be one process: web, sdxl, wan, chat, io, keeper or clock."""
    if name not in HELPERS:
        check_family(name)
    if fds and name != "web":
        raise click.UsageError("--fd is for web only")
    become_worker(name, settings().gpu)
    if name in FAMILIES:
        check_model(name, settings())
        _refuse_wrong_certificate()
        _refuse_namesake(settings().worker_id(name))
    if name == "web":
        from ourvidz.web import serve

        serve.run(settings(), list(fds))
        return
    from ourvidz.app import app

    if name in ("keeper", "clock"):
        # A sweep every two seconds, with three lines each, would fill the disk.
        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        app.start(arguments(name, settings()))
    finally:
        _requeue_held_jobs(name)
