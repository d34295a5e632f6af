"""Opens the sockets that the shim listens on. Imports no web framework: `ourvidz up` opens them too."""

from __future__ import annotations

import socket

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. `host` is a name or an address, IPv6 with or without brackets; port 0 takes a
    free one. Connections made before a server accepts them wait in the backlog.

    Raises `OSError` when the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
