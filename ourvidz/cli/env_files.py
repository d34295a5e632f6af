"""The check of `ourvidz doctor` for files with settings: nobody else may read the secrets in them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ourvidz.cli.checks import Check, ok, skipped, warning
from ourvidz.settings import Settings, secret_variables

SYSTEM_FOLDER = Path("/etc/ourvidz")
"""The folder of the env files that `deploy/systemd` reads."""
COMPOSE_SECRETS = ("REDIS_PASSWORD", "METRICS_KEY")
"""Secrets that are values of `deploy/compose.yaml` and no settings."""


def check_env_files(settings: Settings, *, folder: Path = SYSTEM_FOLDER) -> Check:
    """The env files in the working directory and in `folder`, and the one that is named, are not readable by
    every user of the host if they contain secrets."""
    files = [file for place in (Path.cwd(), folder) for file in sorted(_env_files(place))]
    if settings.env_file is not None and settings.env_file.is_file() and settings.env_file not in files:
        files.append(settings.env_file)
    exposed = [file for file in files if _names_secret(file) and file.stat().st_mode & stat.S_IROTH]
    if exposed:
        names = " ".join(map(str, exposed))
        reason = f"every user of this host can read the secrets in {names}"
        # Taken from all others at once, a file of root would be lost to the processes that read it.
        fix = f"chgrp GROUP {names} && chmod 640 {names}, with the group of the user that runs the processes"
        return warning("env files", reason, fix)
    if not files:
        return skipped("env files", f"there is none in {Path.cwd()} or {folder}")
    return ok("env files", f"no other user can read the secrets in {', '.join(map(str, files))}")


def _env_files(folder: Path) -> Iterator[Path]:
    """The env files of a folder: `.env` and those that are named `….env`. None if it cannot be read."""
    with suppress(OSError):
        yield from (path for path in folder.glob("*.env") if path.is_file())


def _names_secret(file: Path) -> bool:
    """Whether a file sets a secret, such as a key or the URL of the Redis server. False for one that cannot
    be read."""
    secrets = secret_variables().union(COMPOSE_SECRETS)
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.strip().removeprefix("export ").partition("=")
            if value.strip("'\" ") and name.strip() in secrets:
                return True
    return False
