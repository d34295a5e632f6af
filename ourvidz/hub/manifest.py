"""The manifest of a pulled folder: from where its files are, and their checksums.

It is not `SHA256SUMS`, which a worker compares at every load: reading tens of gigabytes takes longer than
loading them. `ourvidz models verify` compares the manifest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ourvidz.errors import HubError

MANIFEST = "ourvidz-pull.json"
VERSION = 1
SEARCHED_FOLDERS = 4
"""How many folders above a file may hold the manifest of what it belongs to."""

_in_use: dict[Path, int] = {}
"""Manifest → the descriptor that holds its shared lock for as long as this process runs."""


@dataclass(frozen=True, slots=True)
class PulledFile:
    """Size in bytes and SHA-256 of one pulled file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was pulled: `revision` as it was asked for, and the `commit` that it was then."""

    repository: str
    revision: str
    commit: str
    files: Mapping[str, PulledFile]
    licence: str | None = None

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files.values())


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None for one that was not pulled. Raises `HubError` if it is damaged."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        files = {
            _checked_name(name): PulledFile(int(file["size"]), str(file["sha256"]))
            for name, file in document["files"].items()
        }
        return Manifest(
            document["repository"], document["revision"], document["commit"], files, document.get("licence")
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(f"{path} cannot be read ({error}): delete {folder} and pull it again") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, which makes it a pulled one."""
    document: dict[str, Any] = {
        "version": VERSION,
        "repository": manifest.repository,
        "revision": manifest.revision,
        "commit": manifest.commit,
        "licence": manifest.licence,
        "files": {
            name: {"size": file.size, "sha256": file.sha256} for name, file in sorted(manifest.files.items())
        },
    }
    path = folder / MANIFEST
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def changed_files(folder: Path, manifest: Manifest, *, contents: bool) -> Iterator[str]:
    """Messages about files that are missing or differ from the manifest. `contents` reads all of them;
    otherwise the sizes are compared."""
    for name, file in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != file.size:
                yield f"{path} has {size} bytes instead of {file.size}"
            elif contents and sha256_of(path) != file.sha256:
                yield f"{path} is not the file that was pulled: it has changed"
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"


def mark_in_use(path: Path) -> None:
    """Keep what was pulled to `path`, or to a folder above it, from being removed or replaced while this
    process runs. Does nothing for files that were not pulled."""
    for folder in (path, *path.parents[:SEARCHED_FOLDERS]):
        manifest = folder / MANIFEST
        if not manifest.is_file():
            continue
        if manifest not in _in_use:
            with suppress(OSError):
                descriptor = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                _in_use[manifest] = descriptor
        return


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """Inside this context no worker begins to use the folder. Raises `HubError` if one uses it."""
    try:
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HubError(f"{folder} is used by a running worker: stop it first") from None
        except OSError:
            # A file system without such locks: no worker could have one either.
            pass
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_name(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name} lies outside the folder")
    return name
