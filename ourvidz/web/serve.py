"""Runs the shim: one process, one or several ports."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from ourvidz import log
from ourvidz.errors import SettingsError
from ourvidz.liveness.beats import Beat
from ourvidz.settings import Settings, settings
from ourvidz.stop_signals import stop_signals
from ourvidz.web.auth import require_safe_binding
from ourvidz.web.callers import OpenCallers, open_callers
from ourvidz.web.connections import ConnectionBudget, Connections, limited_protocol
from ourvidz.web.listener import listen
from ourvidz.web.main import create_app
from ourvidz.web.rate_limits import open_streams

SHUTDOWN_TIMEOUT_S = 3
"""How long the last responses may take once the shim has stopped to serve."""
MAX_OPEN_FILES = 65536
"""Every open request is a connection, and many systems allow 1,024 files unless a process asks for more."""


class Server(uvicorn.Server):
    """Serves until a stop signal; callers that wait for a text then have until `drain_s` seconds later, new
    ones are refused. A second signal ends all of them at once; their jobs are cancelled."""

    def __init__(
        self, config: uvicorn.Config, callers: OpenCallers, *, drain_s: float, beats_dir: Path | None = None
    ) -> None:
        super().__init__(config)
        self._beat = Beat(beats_dir, "event-loop")
        self._callers = callers
        self._drain_s = drain_s
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Note a stop signal. Called by uvicorn."""
        self._captured_signals.append(sig)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop serving now. uvicorn asks ten times a second, so this also shows that the event
        loop runs."""
        self._beat()
        return await super().on_tick(counter) and self._is_drained()

    def _is_drained(self) -> bool:
        now = time.monotonic()
        if self._drain_until is None:
            self._drain_until = now + self._drain_s
            self._callers.stopping = True
        if self._callers.waiting and now < self._drain_until and len(self._captured_signals) < 2:
            return False
        self._callers.end()
        return True


def run(settings: Settings, fds: Sequence[int] = ()) -> None:
    """Serve until a stop signal, on the host and ports of the settings, or on inherited sockets (`fds`).

    Raises `SettingsError` when an address cannot be bound, or must not be without keys.
    """
    log.configure(settings.log_level, settings.log_format)
    sockets = [socket.socket(fileno=fd) for fd in fds] or _open_ports(settings)
    require_safe_binding(settings, [_bound_host(each) for each in sockets])
    budget = ConnectionBudget.of(_raise_file_limit(), settings.max_connections)
    connections = Connections(
        budget.connections,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )
    open_streams.most_possible = max(1, budget.connections // 2)
    config = uvicorn.Config(
        create_app(),
        http=limited_protocol(connections),
        ws="none",
        timeout_keep_alive=settings.idle_timeout_s,
        log_config=None,
        access_log=False,
        backlog=budget.backlog,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
        forwarded_allow_ips=list(settings.trusted_proxies),
    )
    server = Server(config, open_callers, drain_s=settings.sync_limit_s, beats_dir=settings.beats_dir)
    # uvicorn handles the others.
    if signal.SIGHUP in stop_signals():
        signal.signal(signal.SIGHUP, lambda _, frame: server.handle_exit(signal.SIGTERM, frame))
    server.run(sockets=sockets)


def _raise_file_limit() -> int:
    """Allow this process as many open files as its hard limit, up to `MAX_OPEN_FILES`. Returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else max(soft, limit)


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
