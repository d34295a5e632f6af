"""A wall clock for the Redis server that can be stepped, with libfaketime."""

from __future__ import annotations

import stat
from pathlib import Path

from ourvidz.embedded_redis import find_server

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)


class ServerClock:
    """The clock of a server that is started through `server_binary`. Its monotonic clock is never stepped.

    `can_step` is False where libfaketime is not installed (Debian: `apt-get install faketime`).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = next((path for path in LIBRARIES if Path(path).exists()), None)
        self._offset_file = folder / "server-clock"

    @property
    def can_step(self) -> bool:
        """Whether the clock can be stepped on this machine."""
        return self._library is not None

    def server_binary(self) -> Path:
        """The server's binary, or a script that runs it under this clock."""
        binary = find_server(None)
        if self._library is None:
            return binary
        self._folder.mkdir(parents=True, exist_ok=True)
        self.step_to(0)
        script = self._folder / "redis-server"
        script.write_text(
            "#!/bin/sh\n"
            f'exec env LD_PRELOAD="{self._library}" FAKETIME_TIMESTAMP_FILE="{self._offset_file}" '
            f'FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1 "{binary}" "$@"\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return script

    def step_to(self, offset_s: int) -> None:
        """Set the server's clock to the real time plus `offset_s`; it takes up to a second to notice."""
        new = self._offset_file.with_suffix(".new")
        new.write_text(f"{offset_s:+d}\n")
        new.replace(self._offset_file)
