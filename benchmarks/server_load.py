"""What a Redis-protocol server did: requests, fsyncs and bytes, and which process sent which command."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import redis

from ourvidz.ledger.scripts import load_scripts

_LINE = re.compile(r'^[\d.]+ \[\d+ (?P<client>[^\]]+)\] "(?P<command>[^"]*)"(?: "(?P<argument>[^"]*)")?')
BENCHMARK = "benchmark"
OTHER = "other"


def server_load(client: redis.Redis) -> dict[str, float]:
    """Counters of a server, for differences between two times.

    `round_trips`: reads from clients; a pipeline counts once. `fsyncs`: with `appendfsync always` every write
    to the append-only file is followed by one `fdatasync`; they are what the process wrote beside its
    answers, so Linux only. `aof_bytes`, `received_bytes`, `sent_bytes`; `memory_bytes` in use.
    """
    info = client.info("everything")
    load = {
        "round_trips": float(info["total_reads_processed"]),
        "aof_bytes": float(info.get("aof_current_size", 0)),
        "received_bytes": float(info["total_net_input_bytes"]),
        "sent_bytes": float(info["total_net_output_bytes"]),
        "memory_bytes": float(info["used_memory"]),
    }
    if hasattr(psutil.Process, "io_counters"):
        writes = psutil.Process(info["process_id"]).io_counters().write_count
        load["fsyncs"] = float(writes - info["total_writes_processed"])
    return load


class CommandTrace:
    """Counts the commands that clients sent, read from the server's `MONITOR`.

    MULTI to EXEC counts as one command, `transaction`; a script counts under the name of its verb. What
    scripts call is not counted.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._scripts = {
            hashlib.sha1(source.encode()).hexdigest(): f"script {verb}"
            for verb, source in load_scripts().items()
        }

    @contextmanager
    def recording(self, url: str) -> Iterator[None]:
        """Record all commands inside the `with` block. The server is slower meanwhile."""
        client = redis.Redis.from_url(url)
        connection = client.connection_pool.get_connection()
        connection.send_command("MONITOR")
        connection.read_response()
        reader = threading.Thread(target=self._read, args=(connection,), daemon=True)
        reader.start()
        try:
            yield
        finally:
            client.echo("end of the trace")
            reader.join()
            connection.disconnect()
            client.close()

    def _read(self, connection: redis.Connection) -> None:
        while "end of the trace" not in (line := connection.read_response().decode(errors="replace")):
            self._lines.append(line)

    def by_role(self, role_of: Callable[[int], str]) -> dict[tuple[str, str], int]:
        """The number of commands by role of their sender and name. `role_of` names the role of a TCP port."""
        counts: Counter[tuple[str, str]] = Counter()
        in_transaction: set[str] = set()
        for line in self._lines:
            matched = _LINE.match(line)
            if matched is None or matched["client"] == "lua":
                continue
            client, command = matched["client"], matched["command"].lower()
            if command == "multi":
                in_transaction.add(client)
            elif command == "exec":
                in_transaction.discard(client)
                command = "transaction"
            elif command == "evalsha":
                command = self._scripts.get(matched["argument"], "script")
            if client not in in_transaction:
                port = client.rpartition(":")[2]
                counts[role_of(int(port)) if port.isdigit() else OTHER, command] += 1
        return dict(counts)
