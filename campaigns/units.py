"""What systemd does with a unit, without systemd: its command and environment, and how it stops a process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Unit:
    """An instance of a template unit: the part of it that starts and stops a process."""

    command: tuple[str, ...]
    environment: dict[str, str]
    kill_mode: str
    timeout_stop_s: float

    @classmethod
    def load(cls, path: Path, instance: str, *, overrides: dict[str, str] | None = None) -> Self:
        """Read a template. `overrides` are variables of the environment file of the instance."""
        entries = [
            (name.strip(), value.strip().replace("%i", instance))
            for name, _, value in (line.partition("=") for line in path.read_text().splitlines())
            if not name.startswith(("#", "["))
        ]
        environment = dict(value.split("=", 1) for name, value in entries if name == "Environment")
        environment.update(overrides or {})
        single = dict(entries)
        command = single["ExecStart"].replace("${PROCESS}", environment["PROCESS"]).split()
        return cls(tuple(command), environment, single["KillMode"], float(single["TimeoutStopSec"]))

    def stop(self, process: subprocess.Popen[bytes]) -> bool:
        """Stop the main process of a group as `KillMode` says. Returns whether SIGKILL ended it.

        `mixed`: SIGTERM to the main process, then SIGKILL to the group. `control-group`: both to the group.
        """
        if self.kill_mode == "control-group":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            assert self.kill_mode == "mixed", self.kill_mode
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.timeout_stop_s
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        killed = process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return killed
