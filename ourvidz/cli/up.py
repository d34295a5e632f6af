"""`ourvidz up`: everything on one machine, supervised."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ourvidz.cli import embedded, stack
from ourvidz.cli.console import print_json, print_note, spinner
from ourvidz.cli.state import StateDir
from ourvidz.cli.supervisor import Supervisor
from ourvidz.cli.worker import check_model, default_families, families_of
from ourvidz.embedded_redis import find_server, free_port
from ourvidz.errors import ModelLoadError, SettingsError, WorkerUnavailable
from ourvidz.settings import Settings, load_settings

if TYPE_CHECKING:
    from ourvidz.ledger.store import Ledger

TICK_S = 0.1
GLANCE_S = 0.5
"""How long one look at the shim may take: its socket takes connections before it serves them."""
CALLBACK_PATIENCE_S = 2.0
"""How long a shutdown waits for callbacks that are due."""


class Stopped(Exception):
    """The operator asked for an end before everything was ready."""


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
    asked = None if workers is None else families_of(workers)
    chosen = load_settings(**({"OURVIDZ_STATE_DIR": state_dir} if state_dir else {}))
    families = asked or default_families(chosen)
    for family in families:
        check_model(family, chosen)
    if flower and not stack.flower_installed():
        raise SettingsError("Flower is not installed: pip install 'ourvidz[flower]', or pass --no-flower")
    key = _check(chosen)
    state = StateDir(chosen.state_dir)
    over, hurry = threading.Event(), threading.Event()
    with state.lock(), _signals(over, hurry), contextlib.ExitStack() as bound:
        ports = (port,) if port is not None else chosen.ports if "ports" in chosen.model_fields_set else (0,)
        sockets = [bound.enter_context(stack.listen(chosen.host, wanted)) for wanted in ports]
        Up(chosen, state, families, flower, key, over, hurry).run(sockets)


class Up:
    """One run of the stack, from the first process to the last."""

    def __init__(self, chosen: Settings, state: StateDir, families: tuple[str, ...], flower: bool,
                 key: str | None, over: threading.Event, hurry: threading.Event) -> None:  # fmt: skip
        self._chosen = chosen
        self._state = state
        self._families = families
        self._flower = flower
        self._key = key
        self._over = over
        self._supervisor = Supervisor(print_note, hurry)
        self._ledger: Ledger | None = None

    def run(self, sockets: list[socket.socket]) -> None:
        """Start, say when ready, look after everyone, drain, stop."""
        try:
            with spinner("starting the Redis server") as show:
                place = self._start(sockets, show)
                self._await_ready(place, show)
            ready = self._ready(place)
            self._state.write_ready(ready)
            print_json(ready)
            while not self._over.wait(TICK_S):
                self._supervisor.tick()
        except Stopped:
            print_note("stopped before everything was ready")
        finally:
            self._stop()

    def _start(self, sockets: list[socket.socket], show: Callable[[str], None]) -> stack.Place:
        self._began = time.time()
        external = self._chosen.redis_url_given or self._chosen.upstash_url
        place = stack.Place(
            shim=stack.url_of(sockets[0]),
            redis=self._chosen.redis_url if external else self._start_redis(show),
            flower_port=free_port() if self._flower else None,
            web_fds=tuple(sock.fileno() for sock in sockets),
        )
        env = stack.surroundings(self._chosen, self._state, self._state.secrets(), place)
        for spec in stack.processes(self._families, self._state, place, env):
            self._supervisor.start(spec)
        return place

    def _start_redis(self, show: Callable[[str], None]) -> str:
        binary = find_server(self._chosen.redis_server_bin)
        return embedded.start(self._supervisor, self._state, binary=binary, notify=show)

    def _await_ready(self, place: stack.Place, show: Callable[[str], None]) -> None:
        show("starting the shim and the workers")
        # Only now: these imports take as long as the children's own start.
        from ourvidz.cli.shim import Shim
        from ourvidz.wiring import control

        settings = load_settings(OURVIDZ_REDIS_URL=place.redis, OURVIDZ_STATE_DIR=self._state.root)
        self._ledger = control.build(settings).ledger
        shim = Shim(place.shim, None, read_s=GLANCE_S)
        while True:
            missing = self._not_loaded() or ([] if shim.ready() else ["the shim"])
            if not missing:
                return
            show(f"waiting for {' and '.join(missing)}")
            if self._over.wait(TICK_S):
                raise Stopped
            self._supervisor.tick()

    def _not_loaded(self) -> list[str]:
        """The requested workers that have not loaded their models. `ModelLoadError` when one cannot."""
        assert self._ledger is not None
        host = socket.gethostname()
        try:
            mine = {
                worker.family: worker
                for worker in self._ledger.workers()
                if worker.host == host and worker.started_at >= self._began
            }
        except WorkerUnavailable:
            return ["the Redis server"]
        for family, worker in mine.items():
            if "error" in worker.detail:
                raise ModelLoadError(f"the {family} worker cannot load its models: {worker.detail['error']}")
        return [
            f"the {name} models"
            for name in self._families
            if name not in mine or name not in mine[name].models
        ]

    def _ready(self, place: stack.Place) -> dict[str, Any]:
        return {
            "ready": True,
            "shim": place.shim,
            "studio": f"{place.shim}/studio",
            "inbox": f"{place.shim}/inbox",
            "flower": place.flower,
            "redis": place.redis,
            "state_dir": str(self._state.root),
            "api_key": self._key,
            "pids": self._supervisor.pids(),
        }

    def _stop(self) -> None:
        """The workers finish their jobs, the callbacks go out, then the receivers of both go."""
        if self._supervisor.pids():
            print_note("stopping: running jobs may finish")
        self._state.remove_ready()
        stop = self._supervisor.stop
        stop([*self._families, "keeper", "clock", "flower"], stack.last_words(self._chosen.drain_s))
        self._let_callbacks_out()
        stop(["io"], stack.PROMPTLY)
        stop(["web"], stack.PROMPTLY)
        stop([embedded.NAME], stack.PROMPTLY)
        self._supervisor.kill_all()

    def _let_callbacks_out(self) -> None:
        """Wait a moment until nothing is due; what is not told now is told after the next start."""
        patience_ends = time.monotonic() + CALLBACK_PATIENCE_S
        with contextlib.suppress(WorkerUnavailable):
            while self._ledger and self._supervisor.is_running("io") and self._ledger.due_deliveries(1):
                if time.monotonic() >= patience_ends or self._supervisor.must_kill_now():
                    return
                time.sleep(TICK_S)


@contextlib.contextmanager
def _signals(over: threading.Event, hurry: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM drains, a second SIGINT stops at once."""

    def heard(signum: int, _frame: object) -> None:
        if over.is_set() and signum == signal.SIGINT:
            hurry.set()
        over.set()

    before = {signum: signal.signal(signum, heard) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _check(chosen: Settings) -> str | None:
    """Refuse before anything starts what a process would refuse after; the key that opens the job routes.
    `SettingsError` names the variable. Imports only what is asked about: each costs half a second."""
    if chosen.default_callback_url or chosen.webhook_secrets:
        from ourvidz.wiring import control

        control.target(chosen)
    if chosen.c2pa_certificate:
        from ourvidz.wiring import signing

        signing.signer(chosen)
    asked = (
        chosen.api_keys,
        chosen.sdxl_worker_api_key,
        chosen.wan_worker_api_key,
        chosen.chat_worker_api_key,
    )
    if not any(asked) and chosen.host == Settings.model_fields["host"].default:
        return None
    from ourvidz.web.auth import load_keyring, require_safe_binding

    require_safe_binding(chosen)
    return load_keyring(chosen).secret_for("jobs")
