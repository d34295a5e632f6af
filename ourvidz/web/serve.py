"""Runs the shim: one process, one or several ports."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import uvicorn

from ourvidz import log
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, settings
from ourvidz.web.auth import require_safe_binding
from ourvidz.web.listener import BACKLOG, listen
from ourvidz.web.main import create_app

SHUTDOWN_TIMEOUT_S = 3
"""How long open requests and event streams may go on after a stop signal."""


def run(settings: Settings, fds: Sequence[int] = ()) -> None:
    """Serve until a stop signal, on the host and ports of the settings, or on inherited sockets (`fds`).

    Raises `SettingsError` when an address cannot be bound, or must not be without keys.
    """
    log.configure(settings.log_level, settings.log_format)
    sockets = [socket.socket(fileno=fd) for fd in fds] or _open_ports(settings)
    require_safe_binding(settings, [_bound_host(each) for each in sockets])
    config = uvicorn.Config(
        create_app(),
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=sockets)


def _open_ports(settings: Settings) -> list[socket.socket]:
    require_safe_binding(settings)
    return [_open_port(settings.host, port) for port in settings.ports]


def _open_port(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise SettingsError(
            f"OURVIDZ_PORTS: cannot listen on {host}:{port}: {error.strerror}", field="OURVIDZ_PORTS"
        ) from None


def _bound_host(bound: socket.socket) -> str:
    address = bound.getsockname()
    return address[0] if isinstance(address, tuple) else "localhost"


if __name__ == "__main__":
    run(settings())
