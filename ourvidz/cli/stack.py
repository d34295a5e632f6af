"""The processes of `ourvidz up`: their command lines and environment, and the signals that stop them."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import ourvidz
from ourvidz.cli.flower import find_login
from ourvidz.cli.state import CALLBACK_PATH, Secrets, StateDir
from ourvidz.cli.supervisor import ProcessSpec, StopStep
from ourvidz.cli.worker import HELPERS
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, environment
from ourvidz.web import listener

PYTHON_M = (sys.executable, "-P", "-m")
"""Runs a module without the working directory on `sys.path`: a `flower.py` there would be imported."""
HAND_BACK_S = 3.0
"""How long a worker has to exit after its drain limit; it requeues its job at once and takes two seconds."""
HANG_S, MODEL_HANG_S = 60.0, 180.0
"""How long a part of a process may show no sign of life; of one that holds models, whose loading may keep its
other threads waiting."""
EXIT_S = 1.0
"""How long a process without a job has to exit."""


FLOWER_USER = "ourvidz"
FORK_SERVER = "forkserver"
"""The name of the process from which the workers' children are forked."""
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
"""Files that exist where there is a driver of a GPU that torch may use."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where one stack listens: URLs of the shim and of Redis, port of Flower, sockets of the shim."""

    shim: str
    redis: str
    flower_port: int | None
    web_fds: tuple[int, ...]

    @property
    def flower(self) -> str | None:
        """The URL of Flower; None where it does not run."""
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
    """The URL of the shim on a bound socket, for callers on this machine: loopback for a wildcard address."""
    host, port = sock.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{port}"


def child_env(settings: Settings, state: StateDir, secrets: Secrets, endpoints: Endpoints) -> dict[str, str]:
    """The environment of every process of the stack. Variables that the operator has set stay.

    Without a callback receiver of the operator's, callbacks go to the shim's inbox, signed with `secrets`.
    """
    variables: dict[str, str | None] = {
        "OURVIDZ_STATE_DIR": str(state.root),
        "OURVIDZ_EMBEDDED": "1",
        "OURVIDZ_REDIS_URL": endpoints.redis,
        "OURVIDZ_WORKER": None,
        "PYTHONUNBUFFERED": "1",
    }
    if settings.public_url is None:
        variables["OURVIDZ_PUBLIC_URL"] = endpoints.shim
    port = urlsplit(endpoints.shim).port
    if port not in settings.ports:
        # Workers are registered with the port at which the shim really listens.
        variables["OURVIDZ_PORTS"] = str(port)
    if settings.default_callback_url is None:
        variables["OURVIDZ_CALLBACK_URL"] = endpoints.shim + CALLBACK_PATH
        if not settings.callback_secrets:
            variables["JOB_CALLBACK_SECRET"] = secrets.callback_secret
        if not settings.webhook_secrets:
            variables["OURVIDZ_WEBHOOK_SECRET"] = secrets.webhook_secret
    return with_package_path(environment(**variables))


def with_package_path(env: dict[str, str]) -> dict[str, str]:
    """A copy of an environment with this package first on `PYTHONPATH`, so that children can import it."""
    paths = (str(Path(ourvidz.__file__).parents[1]), env.get("PYTHONPATH"))
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def forks_children(families: tuple[str, ...], settings: Settings) -> bool:
    """Whether a fork server imports the libraries of all families once: where there are several, with our own
    pipelines, on Linux, and without a GPU, which a process that is forked must not have touched."""
    own_models = settings.models == Settings.model_fields["models"].default
    has_gpu = settings.gpu is not None or any(Path(name).exists() for name in GPU_DEVICES)
    return len(families) > 1 and own_models and sys.platform == "linux" and not has_gpu


def process_specs(
    families: tuple[str, ...],
    state: StateDir,
    endpoints: Endpoints,
    env: dict[str, str],
    fork_sockets: tuple[socket.socket, socket.socket] | None = None,
    flower_login: str | None = None,
) -> list[ProcessSpec]:
    """All processes but the embedded Redis server, in the order of their start: first those that the first
    family's jobs need. `fork_sockets`: those of the fork server and of the workers, where there is one."""
    flower_env = {"FLOWER_BASIC_AUTH": flower_login} if flower_login else {}
    fds = [argument for fd in endpoints.web_fds for argument in ("--fd", str(fd))]
    specs: list[ProcessSpec] = []
    model_env, asks = env, tuple[int, ...]()
    if fork_sockets is not None:
        serves, asking = (sock.fileno() for sock in fork_sockets)
        specs.append(_fork_server_spec(families, state, env, serves))
        model_env, asks = env | {"OURVIDZ_FORK_SERVER_FD": str(asking)}, (asking,)
    specs.extend(_worker_spec(name, state, model_env, pass_fds=asks) for name in families[:1])
    specs.append(_worker_spec("web", state, env, *fds, pass_fds=endpoints.web_fds))
    specs.extend(_worker_spec(name, state, env) for name in HELPERS if name != "web")
    specs.extend(_worker_spec(name, state, model_env, pass_fds=asks) for name in families[1:])
    if endpoints.flower_port is not None:
        argv = (*PYTHON_M, "ourvidz.cli.main", "flower", f"--port={endpoints.flower_port}")
        specs.append(ProcessSpec("flower", argv, env | flower_env, state.log("flower")))
    return specs


def drain_steps(drain_s: float) -> list[StopStep]:
    """The signals that stop a worker: SIGTERM, at which it drains for `drain_s` and requeues its job after
    that; SIGKILL."""
    return [(signal.SIGTERM, drain_s + HAND_BACK_S), (signal.SIGKILL, EXIT_S)]


STOP_STEPS: list[StopStep] = [(signal.SIGTERM, EXIT_S), (signal.SIGKILL, EXIT_S)]
"""The signals that stop a process without a job."""
WEB_STOP_STEPS: list[StopStep] = [
    (signal.SIGTERM, EXIT_S),
    (signal.SIGTERM, HAND_BACK_S),
    (signal.SIGKILL, EXIT_S),
]
"""The signals that stop the shim. The workers are gone by then: a second one ends what callers wait for."""


def _worker_spec(
    name: str, state: StateDir, env: dict[str, str], *options: str, pass_fds: tuple[int, ...] = ()
) -> ProcessSpec:
    """The process `ourvidz worker NAME`, with its log file and inherited file descriptors."""
    argv = (*PYTHON_M, "ourvidz.cli.main", "worker", name, *options)
    beats = state.beats(name)
    env = env | {"OURVIDZ_BEATS_DIR": str(beats)}
    hang_s = HANG_S if name in HELPERS else MODEL_HANG_S
    return ProcessSpec(name, argv, env, state.log(name), pass_fds, beats, hang_s)


def _fork_server_spec(
    families: tuple[str, ...], state: StateDir, env: dict[str, str], fd: int
) -> ProcessSpec:
    """The process from which the workers' children are forked."""
    code = f"from ourvidz import forkserver_main; forkserver_main.main({fd}, {list(families)!r})"
    argv = (sys.executable, "-P", "-c", code)
    return ProcessSpec(FORK_SERVER, argv, env, state.log(FORK_SERVER), (fd,))


def flower_login(settings: Settings, secrets: Secrets) -> str | None:
    """The login of Flower: the operator's, else a generated one. None where the operator wants none."""
    if login := find_login(settings):
        return login
    return None if settings.flower_open_api else f"{FLOWER_USER}:{secrets.flower_password}"


def flower_installed() -> bool:
    """Whether the package Flower is installed."""
    return find_spec("flower") is not None
