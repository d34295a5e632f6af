"""`ourvidz up`: starts and supervises all processes on one machine, and stops them in order."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ourvidz.cli import embedded, stack
from ourvidz.cli.console import print_json, print_note, spinner
from ourvidz.cli.disk_reserve import DiskReserve
from ourvidz.cli.libraries import require_libraries
from ourvidz.cli.start_order import StaggeredStart, processors
from ourvidz.cli.state import StateDir
from ourvidz.cli.storage_access import require_storage_access
from ourvidz.cli.supervisor import Supervisor
from ourvidz.cli.worker import check_models, default_families, parse_families
from ourvidz.embedded_redis import find_server, free_port
from ourvidz.errors import ModelLoadError, SettingsError, WorkerUnavailable
from ourvidz.settings import Settings, load_settings
from ourvidz.stop_signals import stop_signals

if TYPE_CHECKING:
    from ourvidz.ledger.store import Ledger
    from ourvidz.records.record import Worker

TICK_S = 0.1
PROBE_TIMEOUT_S = 0.5
"""How long one readiness probe of the shim may take: its socket accepts connections before it serves them."""
CALLBACK_DRAIN_S = 2.0
"""How long a shutdown waits for callbacks that are due."""


class StopRequested(Exception):
    """A stop signal arrived before everything was ready."""


@click.command(short_help="Start everything on this machine and keep it running.")
@click.option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Where everything is kept."
)
@click.option("--port", type=click.IntRange(0, 65535), help="The shim's port; a free one by default.")
@click.option("--flower/--no-flower", default=True, help="Whether to run Flower.")
@click.option("--workers", help="The GPU workers, with commas; those that have a checkpoint by default.")
def up(state_dir: Path | None, port: int | None, flower: bool, workers: str | None) -> None:
    """Start everything on this machine and keep it running.

    Prints one line of JSON when everything is ready. Ctrl-C drains and stops; a second one stops at once.
    """
    requested = None if workers is None else parse_families(workers)
    settings = load_settings(**({"OURVIDZ_STATE_DIR": state_dir} if state_dir else {}))
    families = requested or default_families(settings)
    for family in families:
        check_models(family, settings)
    require_libraries(settings)
    if flower and not stack.flower_installed():
        raise SettingsError("Flower is not installed: pip install 'ourvidz[flower]', or pass --no-flower")
    key = _check_settings(settings)
    state = StateDir(settings.state_dir)
    stop, kill_now = threading.Event(), threading.Event()
    with state.lock(), _handle_signals(stop, kill_now), contextlib.ExitStack() as opened:
        if port is not None:
            ports: tuple[int, ...] = (port,)
        else:
            ports = settings.ports if "ports" in settings.model_fields_set else (0,)
        sockets = [opened.enter_context(stack.listen(settings.host, number)) for number in ports]
        StackRun(settings, state, families, flower, key, stop, kill_now).run(sockets)


class StackRun:
    """One run of the stack, from the first process to the last.

    key: the API key of the ready line, if the shim requires one. stop is set by the first stop signal,
    kill_now by a second SIGINT.
    """

    def __init__(self, settings: Settings, state: StateDir, families: tuple[str, ...], flower: bool,
                 key: str | None, stop: threading.Event, kill_now: threading.Event) -> None:  # fmt: skip
        self._settings = settings
        self._state = state
        self._families = families
        self._flower = flower
        self._key = key
        self._stop_requested = stop
        self._supervisor = Supervisor(print_note, kill_now)
        self._ledger: Ledger | None = None

    def run(self, sockets: list[socket.socket]) -> None:
        """Start all processes, print the ready line, supervise until a stop signal, then drain and stop.

        `sockets` are those of the shim. Raises `ModelLoadError` when a worker cannot load its models.
        """
        try:
            with spinner("starting the Redis server") as update:
                endpoints = self._start(sockets, update)
                self._wait_until_ready(endpoints, update)
            ready = self._ready_line(endpoints)
            self._state.write_ready(ready)
            print_json(ready)
            while not self._stop_requested.wait(TICK_S):
                self._supervisor.tick()
        except StopRequested:
            print_note("stopped before everything was ready")
        finally:
            self._stop()

    def _start(self, sockets: list[socket.socket], update: Callable[[str], None]) -> stack.Endpoints:
        """Start Redis, unless the operator has one, then the other processes."""
        self._started_at = time.time()
        external = self._settings.configured_redis_url or self._settings.upstash_url
        endpoints = stack.Endpoints(
            shim=stack.url_of(sockets[0]),
            redis=self._settings.redis_url if external else self._start_redis(update),
            flower_port=free_port() if self._flower else None,
            web_fds=tuple(sock.fileno() for sock in sockets),
        )
        secrets = self._state.secrets()
        env = stack.child_env(self._settings, self._state, secrets, endpoints)
        self._flower_login = stack.flower_login(self._settings, secrets) if self._flower else None
        forks = stack.forks_children(self._families, self._settings)
        # Kept: a fork server that is started again reads the requests that came meanwhile.
        self._fork_sockets = socket.socketpair(type=socket.SOCK_DGRAM) if forks else None
        specs = stack.process_specs(
            self._families, self._state, endpoints, env, self._fork_sockets, self._flower_login
        )
        importing = len(specs) if forks else processors()
        self._starting = StaggeredStart(specs, self._supervisor.start, processors=importing)
        self._starting.advance()
        return endpoints

    def _start_redis(self, update: Callable[[str], None]) -> str:
        binary = find_server(self._settings.redis_server_bin)
        reserve = DiskReserve(embedded.folder_of(self._state) / "reserve", notify=print_note)
        reserve.check()
        reserve.start()
        url = embedded.start(self._supervisor, self._state, binary=binary, notify=update)
        embedded.start_probing(url, self._state)
        return url

    def _wait_until_ready(self, endpoints: stack.Endpoints, update: Callable[[str], None]) -> None:
        """Wait until all workers have loaded their models and the shim is ready."""
        update("starting the shim and the workers")
        # Imported here: these imports take as long as the children need to start.
        from ourvidz.cli.shim import Shim
        from ourvidz.wiring import control

        settings = load_settings(OURVIDZ_REDIS_URL=endpoints.redis, OURVIDZ_STATE_DIR=self._state.root)
        self._ledger = control.build(settings).ledger
        shim = Shim(endpoints.shim, None, read_timeout_s=PROBE_TIMEOUT_S)
        while True:
            workers = self._workers()
            # A worker appears in the ledger when its child has imported its libraries.
            self._starting.advance(workers or ())
            missing = self._missing(workers) or ([] if shim.is_ready() else ["the shim"])
            if not missing:
                return
            update(f"waiting for {' and '.join(missing)}")
            if self._stop_requested.wait(TICK_S):
                raise StopRequested
            self._supervisor.tick()

    def _workers(self) -> dict[str, Worker] | None:
        """The workers of this stack that have started, by family; None where the Redis server is away."""
        assert self._ledger is not None
        host = socket.gethostname()
        try:
            return {
                worker.family: worker
                for worker in self._ledger.workers()
                if worker.host == host and worker.started_at >= self._started_at
            }
        except WorkerUnavailable:
            return None

    def _missing(self, workers: dict[str, Worker] | None) -> list[str]:
        """What is not loaded yet, as text. Raises `ModelLoadError` when a worker cannot load its models."""
        if workers is None:
            return ["the Redis server"]
        for family, worker in workers.items():
            if worker.load_error is not None:
                raise ModelLoadError(f"the {family} worker cannot load its models: {worker.load_error}")
        return [
            f"the {family} models"
            for family in self._families
            if family not in workers or family not in workers[family].models
        ]

    def _ready_line(self, endpoints: stack.Endpoints) -> dict[str, Any]:
        """The JSON line that `ourvidz up` prints; `studio` is None as long as the shim has no such page."""
        from ourvidz.cli.shim import Shim

        has_studio = Shim(endpoints.shim, self._key).has_page("/studio")
        return {
            "ready": True,
            "shim": endpoints.shim,
            "studio": f"{endpoints.shim}/studio" if has_studio else None,
            "inbox": f"{endpoints.shim}/inbox",
            "flower": endpoints.flower,
            "flower_login": self._flower_login,
            "redis": endpoints.redis,
            "state_dir": str(self._state.root),
            "api_key": self._key,
            "pids": self._supervisor.pids(),
        }

    def _stop(self) -> None:
        """Stop all processes: drain the workers, send the callbacks, then stop io, the shim and Redis."""
        if self._supervisor.pids():
            print_note("stopping: running jobs may finish")
        self._state.remove_ready()
        stop = self._supervisor.stop
        stop([*self._families, "keeper", "flower"], stack.drain_steps(self._settings.drain_s))
        self._drain_callbacks()
        stop(["io"], stack.STOP_STEPS)
        stop(["web"], stack.WEB_STOP_STEPS)
        stop([embedded.NAME], stack.STOP_STEPS)
        # The fork server, which holds nothing, is killed.
        self._supervisor.kill_all()

    def _drain_callbacks(self) -> None:
        """Wait up to `CALLBACK_DRAIN_S` until no callback is due. The rest is sent after the next start."""
        deadline = time.monotonic() + CALLBACK_DRAIN_S
        with contextlib.suppress(WorkerUnavailable):
            while self._ledger and self._supervisor.is_running("io") and self._ledger.due_deliveries(1):
                if time.monotonic() >= deadline or self._supervisor.must_kill_now():
                    return
                time.sleep(TICK_S)


@contextlib.contextmanager
def _handle_signals(stop: threading.Event, kill_now: threading.Event) -> Iterator[None]:
    """Set `stop` on SIGINT, SIGTERM and SIGHUP, and `kill_now` on a SIGINT after that. SIGHUP stays ignored
    where it was, as under `nohup`."""

    def handle(signum: int, _frame: object) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            kill_now.set()
        if signum == signal.SIGHUP:
            _leave_terminal()
        stop.set()

    previous = {signum: signal.signal(signum, handle) for signum in stop_signals()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _leave_terminal() -> None:
    """Discard what is written to the terminal from now on: it is closed, and an error would end the stop."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)


def _check_settings(settings: Settings) -> str | None:
    """Check the settings that a child process would refuse; returns the API key for jobs, if one is required.

    Raises `SettingsError`. Imports only what the settings need: each of these imports takes half a second.
    """
    if settings.default_callback_url or settings.webhook_secrets:
        from ourvidz.wiring import control

        control.target(settings)
    if settings.profile == "production":
        from ourvidz.cli import broker_checks

        broker_checks.require_no_eviction(settings)
    require_storage_access(settings)
    if settings.c2pa_certificate:
        from ourvidz.wiring import signing

        signing.signer(settings)
    keys = (
        settings.api_keys,
        settings.sdxl_worker_api_key,
        settings.wan_worker_api_key,
        settings.chat_worker_api_key,
    )
    at_default_host = settings.host == Settings.model_fields["host"].default
    may_be_exposed = settings.profile == "production" or settings.public_url is not None
    if not any(keys) and at_default_host and not settings.require_keys and not may_be_exposed:
        return None
    from ourvidz.web.auth import load_keyring, require_safe_binding

    require_safe_binding(settings)
    return load_keyring(settings).secret_for("jobs")
