"""The state directory of one `ourvidz up`: its lock, its secrets, its logs, and where it listens."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ourvidz.errors import Conflict, SettingsError
from ourvidz.settings import adopt, settings

ROTATE_BYTES = 10 << 20
CALLBACK_PATH = "/functions/v1/job-callback"


@dataclass(frozen=True, slots=True)
class Secrets:
    """What is generated once for a state directory."""

    redis_password: str
    callback_secret: str
    webhook_secret: str

    @classmethod
    def generate(cls) -> Secrets:
        """Fresh ones; the webhook secret in the form of Standard Webhooks."""
        signing = base64.b64encode(secrets.token_bytes(32)).decode()
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), f"whsec_{signing}")


@dataclass(frozen=True, slots=True)
class StateDir:
    """One state directory. `root` is made on first use, readable by its owner only."""

    root: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory alone. `Conflict` names the process that has it."""
        self._make()
        with (self.root / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise Conflict(
                    f"{self.root} is in use by another `ourvidz up` (pid {holder}); stop it or choose another"
                    " --state-dir"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self.withdraw()
            yield

    def secrets(self) -> Secrets:
        """The secrets, generated on first use. `SettingsError` when the file is damaged."""
        path = self.root / "secrets.json"
        try:
            return Secrets(**json.loads(path.read_text()))
        except FileNotFoundError:
            made = Secrets.generate()
            self.keep_private("secrets.json", json.dumps(asdict(made), indent=1))
            return made
        except (ValueError, TypeError):
            raise SettingsError(f"{path} is damaged; remove it and new secrets are made") from None

    def log(self, name: str) -> Path:
        """Where a process logs to; a long log is set aside first, one old one is kept."""
        folder = self.root / "logs"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.log"
        if path.exists() and path.stat().st_size > ROTATE_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path

    def announce(self, ready: dict[str, Any]) -> None:
        """Leave a note of where everything listens, for `ourvidz jobs` and `ourvidz doctor`."""
        self.keep_private("ready.json", json.dumps(ready))

    def announced(self) -> dict[str, Any] | None:
        """What the running `ourvidz up` said, if one runs here."""
        try:
            said: dict[str, Any] = json.loads((self.root / "ready.json").read_text())
        except (OSError, ValueError):
            return None
        return said

    def withdraw(self) -> None:
        """Take the note back. Safe to call twice."""
        (self.root / "ready.json").unlink(missing_ok=True)

    def keep_private(self, name: str, text: str) -> Path:
        """Write a file that only its owner can read, all of it or nothing."""
        path = self.root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.new")
        aside.unlink(missing_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        return path

    def _make(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"--state-dir: {self.root} cannot be made: {error.strerror}", field="state_dir"
            ) from None


def join_running() -> None:
    """Talk to the Redis server of the running `ourvidz up`, if there is one and no other is set."""
    chosen = settings()
    running = StateDir(chosen.state_dir).announced()
    if running and not (chosen.redis_url_given or chosen.upstash_url):
        adopt(OURVIDZ_REDIS_URL=running["redis"])
        if chosen.default_callback_url is None:
            adopt(OURVIDZ_CALLBACK_URL=running["shim"] + CALLBACK_PATH)
