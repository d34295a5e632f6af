"""The state directory of one `ourvidz up`: its lock, its secrets, its logs, and where it listens."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ourvidz.errors import Conflict, SettingsError
from ourvidz.settings import set_environment, settings

MAX_LOG_BYTES = 10 << 20
"""A log of this size is rotated at the next start."""
CALLBACK_PATH = "/functions/v1/job-callback"
"""Path of the callback receiver: that of the Supabase function, which the shim's inbox imitates."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets that are generated once for a state directory."""

    redis_password: str = field(repr=False)
    callback_secret: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    flower_password: str = field(default="", repr=False)

    @classmethod
    def generate(cls) -> Secrets:
        """New random secrets; the webhook secret has the format of Standard Webhooks (`whsec_…`)."""
        signing = base64.b64encode(secrets.token_bytes(32)).decode()
        passwords = [secrets.token_urlsafe(32) for _ in range(3)]
        return cls(passwords[0], passwords[1], f"whsec_{signing}", passwords[2])


@dataclass(frozen=True, slots=True)
class StateDir:
    """A state directory. `root` is created on first use, readable only by its owner."""

    root: Path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the exclusive lock of the directory. Raises `Conflict` with the process id of its holder."""
        self._create()
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
            for path in self._private_paths():
                _make_private(path)
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self.remove_ready()
            yield

    def secrets(self) -> Secrets:
        """The secrets, generated on first use. Raises `SettingsError` when their file is damaged."""
        path = self.root / "secrets.json"
        try:
            stored = Secrets(**json.loads(path.read_text()))
            if stored.flower_password:
                return stored
            # A release before this one knew no login of Flower.
            stored = replace(stored, flower_password=Secrets.generate().flower_password)
        except FileNotFoundError:
            stored = Secrets.generate()
        except (ValueError, TypeError):
            raise SettingsError(f"{path} is damaged; remove it and new secrets are made") from None
        self.write_private("secrets.json", json.dumps(asdict(stored), indent=1))
        return stored

    def log(self, name: str) -> Path:
        """The log file of a process. A file that is too long is renamed to `.log.1` first."""
        folder = self.root / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{name}.log"
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        path.touch(mode=0o600)
        return path

    def beats(self, name: str) -> Path:
        """The folder in which a process shows that it is alive."""
        return self.root / "beats" / name

    def write_ready(self, ready: dict[str, Any]) -> None:
        """Store the JSON line that `ourvidz up` prints when it is ready, for the other commands."""
        self.write_private("ready.json", json.dumps(ready))

    def read_ready(self) -> dict[str, Any] | None:
        """The JSON line of the `ourvidz up` that runs in this directory; None if there is none."""
        try:
            ready: dict[str, Any] = json.loads((self.root / "ready.json").read_text())
        except (OSError, ValueError):
            return None
        return ready

    def remove_ready(self) -> None:
        """Delete the stored line. Safe to call twice."""
        (self.root / "ready.json").unlink(missing_ok=True)

    def write_private(self, name: str, text: str) -> Path:
        """Write a file atomically, readable only by its owner; returns its path."""
        path = self.root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return path

    def _create(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"--state-dir: {self.root} cannot be made: {error.strerror}", field="state_dir"
            ) from None

    def _private_paths(self) -> Iterator[Path]:
        """What only the owner may use: the directory, and its files, which an earlier release may have left
        readable. Not the assets, of which there may be many: nobody gets to them through the directory."""
        yield self.root
        for pattern in ("*.json", "lock", "inbox.sqlite3*", "logs", "logs/**/*", "redis", "redis/**/*"):
            yield from self.root.glob(pattern)


def _make_private(path: Path) -> None:
    """Let only the owner of a file or folder use it. Raises `SettingsError` where that cannot be done."""
    try:
        status = path.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o077:
            return
        # One with the sticky bit is shared by all users, as /tmp is.
        refused = bool(status.st_mode & stat.S_ISVTX)
        if not refused:
            path.chmod(status.st_mode & 0o700)
            refused = bool(path.stat().st_mode & 0o077)
    except FileNotFoundError:
        return
    except OSError:
        refused = True
    if refused:
        raise SettingsError(
            f"--state-dir: other users can read {path}, and its mode cannot be changed: make it 0700 (files"
            " 0600), or choose a directory of your own on a file system with modes",
            field="state_dir",
        )


def use_running_stack() -> None:
    """Set `OURVIDZ_REDIS_URL`, and the callback URL if none is set, to those of the running `ourvidz up`.

    Changes nothing where none runs, or where the operator has set a Redis server.
    """
    current = settings()
    running = StateDir(current.state_dir).read_ready()
    if running and not (current.configured_redis_url or current.upstash_url):
        set_environment(OURVIDZ_REDIS_URL=running["redis"])
        if current.default_callback_url is None:
            set_environment(OURVIDZ_CALLBACK_URL=running["shim"] + CALLBACK_PATH)
