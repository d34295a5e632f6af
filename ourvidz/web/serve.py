"""Running the shim: one process, one or several ports."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import uvicorn

from ourvidz import log
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, settings
from ourvidz.web.auth import require_safe_binding
from ourvidz.web.main import create_app

GRACE_S = 3
"""How long requests and event streams may go on after a stop signal."""
BACKLOG = 2048


def run(chosen: Settings, fds: Sequence[int] = ()) -> None:
    """Serve until a stop signal, on the settings' host and ports, or on sockets this process inherited.
    `SettingsError` when it may not or cannot listen there."""
    log.configure(chosen.log_level, chosen.log_format)
    sockets = [socket.socket(fileno=fd) for fd in fds] or _bind(chosen)
    require_safe_binding(chosen, [_host(each) for each in sockets])
    config = uvicorn.Config(
        create_app(),
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=sockets)


def _bind(chosen: Settings) -> list[socket.socket]:
    require_safe_binding(chosen)
    return [_listen(chosen.host, port) for port in chosen.ports]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host.strip("[]"), port))
    except OSError as error:
        made.close()
        raise SettingsError(
            f"OURVIDZ_PORTS: cannot listen on {host}:{port}: {error.strerror}", field="OURVIDZ_PORTS"
        ) from None
    return made


def _host(bound: socket.socket) -> str:
    address = bound.getsockname()
    return address[0] if isinstance(address, tuple) else "localhost"


if __name__ == "__main__":
    run(settings())
