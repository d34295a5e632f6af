"""Counts what clients ask of a Redis server, by its MONITOR command."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from ourvidz.ledger.scripts import load_scripts

_END = "end-of-monitoring"
_CONNECTING = {"HELLO", "AUTH", "CLIENT", "SELECT"}
_VERBS = {hashlib.sha1(source.encode()).hexdigest(): verb for verb, source in load_scripts().items()}


@dataclass
class Monitored:
    """The commands that clients sent, in order: the name of a script's verb, or the command in capitals with
    its first argument. Left out is what a script does inside the server, and what opens a connection."""

    commands: list[str] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Add one line of MONITOR."""
        if line["client_type"] != "lua":
            name, *arguments = line["command"].split(" ")
            name = name.upper()
            if name in _CONNECTING:
                return
            if name == "EVALSHA":
                self.commands.append(_VERBS.get(arguments[0], arguments[0]))
            else:
                self.commands.append(" ".join([name, *arguments[:1]]))


@contextmanager
def monitored(url: str) -> Iterator[Monitored]:
    """Yields what clients send to a server inside the context; complete when it has ended."""
    seen = Monitored()
    with redis.Redis.from_url(url, decode_responses=True) as client, client.monitor() as monitor:
        thread = threading.Thread(target=_read, args=(monitor, seen), daemon=True)
        thread.start()
        yield seen
        client.echo(_END)
        thread.join(10)


def _read(monitor: Any, seen: Monitored) -> None:
    for line in monitor.listen():
        if line["command"] == f"ECHO {_END}":
            return
        seen.add(line)
