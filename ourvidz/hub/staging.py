"""Where an unfinished pull lies, how it replaces an earlier one, its lock, and the space of its disk."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ourvidz.errors import HubError
from ourvidz.hub.catalog import GB
from ourvidz.hub.manifest import MANIFEST

MIN_FREE_BYTES = GB
"""Space that a pull leaves on the disk for the other programs of the host."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of file systems without such locks, and of NFS for files that are open for reading only."""


def staging_folder(folder: Path) -> Path:
    """Where the files of a pull lie until all are complete."""
    return folder.with_name(f"{folder.name}.partial")


def replaced_folder(folder: Path) -> Path:
    """Where an earlier pull lies while a new one takes its name."""
    return folder.with_name(f"{folder.name}.replaced")


def publish(folder: Path) -> None:
    """Give the staged files of a complete pull the folder's name, in place of an earlier pull."""
    replaced = replaced_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    staging_folder(folder).rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def finish_publication(folder: Path) -> None:
    """Do what is left of a `publish` that was killed: the new pull gets the name if it is complete, else the
    earlier one gets it back. The caller holds the lock."""
    staging, replaced = staging_folder(folder), replaced_folder(folder)
    if not folder.exists():
        if (staging / MANIFEST).is_file():
            staging.rename(folder)
        elif replaced.is_dir():
            replaced.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def staged_bytes(folder: Path) -> int:
    """What an interrupted pull has left to continue with, in bytes."""
    staging = staging_folder(folder)
    return sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Free space of the disk on which a folder lies, or will lie."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(existing).free


@contextmanager
def pull_lock(folder: Path, waiting: Callable[[], None] | None) -> Iterator[None]:
    """Inside this context no other process pulls into a folder. The lock ends with its process. If another
    one holds it, `waiting` is called and the lock is waited for; without `waiting` that is a `HubError`."""
    with disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise HubError(f"another process pulls into {folder}: stop it, or wait for it") from None
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an `OSError` to a `HubError` that says what cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in DISK_FULL
        fix = (
            "free space, and pull again: what has arrived is kept"
            if full
            else "correct its permissions, or set OURVIDZ_MODELS_DIR to another folder"
        )
        raise HubError(f"{path} cannot be written ({error.strerror or error}): {fix}") from None
