"""What `ourvidz up` runs: the processes, their environment, and the order in which they stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import ourvidz
from ourvidz.cli.state import CALLBACK_PATH, Secrets, StateDir
from ourvidz.cli.supervisor import ProcessSpec, StopStep
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, environment
from ourvidz.web import listener

PYTHON_M = (sys.executable, "-P", "-m")
"""Without the working directory on the path: a file there called `flower.py` would be imported."""
HELPERS = ("io", "keeper", "clock")
HAND_BACK_S = 3.0
"""How long a worker has to give its job back and go, once it was told to drop it; it takes about two."""
GOODBYE_S = 1.0
"""How long a process without a job has to go."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one stack listens."""

    shim: str
    redis: str
    flower_port: int | None
    web_fds: tuple[int, ...]

    @property
    def flower(self) -> str | None:
        """Flower's page."""
        return f"http://127.0.0.1:{self.flower_port}" if self.flower_port else None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket for the shim; port 0 takes a free one. Raises `SettingsError`.

    Opened here, not in the child: a connection made while the shim restarts waits instead of being refused.
    """
    try:
        return listener.listen(host, port)
    except OSError as error:
        raise SettingsError(f"--port: {host}:{port} cannot be used: {error.strerror}", field="port") from None


def url_of(sock: socket.socket) -> str:
    """The shim's URL on a bound socket, as seen from this machine."""
    host, port = sock.getsockname()[:2]
    seen = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{seen}:{port}"


def surroundings(chosen: Settings, state: StateDir, secrets: Secrets, place: Place) -> dict[str, str]:
    """The environment of every process. What the operator has set stays; callbacks that have no other
    receiver go to the shim's own inbox, signed with the generated secrets."""
    own: dict[str, str | None] = {
        "OURVIDZ_STATE_DIR": str(state.root),
        "OURVIDZ_EMBEDDED": "1",
        "OURVIDZ_REDIS_URL": place.redis,
        "OURVIDZ_WORKER": None,
        "PYTHONUNBUFFERED": "1",
    }
    if chosen.public_url is None:
        own["OURVIDZ_PUBLIC_URL"] = place.shim
    if chosen.default_callback_url is None:
        own["OURVIDZ_CALLBACK_URL"] = place.shim + CALLBACK_PATH
        if not chosen.callback_secrets:
            own["JOB_CALLBACK_SECRET"] = secrets.callback_secret
        if not chosen.webhook_secrets:
            own["OURVIDZ_WEBHOOK_SECRET"] = secrets.webhook_secret
    return findable(environment(**own))


def findable(env: dict[str, str]) -> dict[str, str]:
    """An environment in which a child finds this package wherever it was started."""
    found = (str(Path(ourvidz.__file__).parents[1]), env.get("PYTHONPATH"))
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, found))}


def processes(
    families: tuple[str, ...], state: StateDir, place: Place, env: dict[str, str]
) -> list[ProcessSpec]:
    """Everything but the embedded server, the slowest to start first."""
    fds = [argument for fd in place.web_fds for argument in ("--fd", str(fd))]
    specs = [_worker(name, state, env) for name in families]
    specs.append(_worker("web", state, env, *fds, pass_fds=place.web_fds))
    specs.extend(_worker(name, state, env) for name in HELPERS)
    if place.flower_port is not None:
        specs.append(ProcessSpec("flower", _flower(place.flower_port), env, state.log("flower")))
    return specs


def last_words(drain_s: float) -> list[StopStep]:
    """How a worker is stopped: finish the job; hand it back; go."""
    return [(signal.SIGTERM, drain_s), (signal.SIGQUIT, HAND_BACK_S), (signal.SIGKILL, GOODBYE_S)]


PROMPTLY: list[StopStep] = [(signal.SIGTERM, GOODBYE_S), (signal.SIGKILL, GOODBYE_S)]


def _worker(
    name: str, state: StateDir, env: dict[str, str], *more: str, pass_fds: tuple[int, ...] = ()
) -> ProcessSpec:
    argv = (*PYTHON_M, "ourvidz.cli.main", "worker", name, *more)
    return ProcessSpec(name, argv, env, state.log(name), pass_fds)


def _flower(port: int) -> tuple[str, ...]:
    celery = (*PYTHON_M, "celery", "-A", "ourvidz.app", "flower")
    return (
        *celery,
        "--address=127.0.0.1",
        f"--port={port}",
        "--purge_offline_workers=300",
        "--natural_time=true",
    )


def flower_installed() -> bool:
    """Whether Flower can be started here."""
    return find_spec("flower") is not None
