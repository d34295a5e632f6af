"""Storage in a directory of this machine."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from ourvidz.errors import NotFound, StorageError
from ourvidz.storage.keys import segments

_NOTHING_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class LocalStore:
    """Keeps every key as a file under `root`; implements `Store`.

    With a `public_url` (scheme, host and port of the shim) every key has a URL under `/assets/`.
    """

    def __init__(self, root: Path, public_url: str | None = None) -> None:
        self.root = root
        self.public_url = public_url.rstrip("/") if public_url else None

    def put(self, key: str, data: bytes, *, content_type: str) -> None:  # noqa: ARG002 - the ending tells
        """Keep `data` under `key`, replacing what was there. All of it or nothing is readable after, even
        when the machine loses power."""
        path = self._path(key)
        # No key can name this file: "~" is outside their alphabet.
        aside = path.with_name(f"~{secrets.token_hex(8)}")
        try:
            _make_folder(path.parent)
            try:
                _write_through(aside, data)
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as error:
            raise _failed("kept", key, error) from error

    def get(self, key: str) -> bytes:
        """What is kept under `key`. `NotFound` when nothing is."""
        try:
            return self._path(key).read_bytes()
        except _NOTHING_THERE:
            raise NotFound(f"There is nothing under {key}.", field="key", value=key) from None
        except OSError as error:
            raise _failed("read", key, error) from error

    def exists(self, key: str) -> bool:
        """Whether `get` would find something."""
        try:
            return self._path(key).is_file()
        except OSError as error:
            raise _failed("read", key, error) from error

    def delete(self, key: str) -> None:
        """Forget `key`. Safe to call twice."""
        try:
            if self.exists(key):
                self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise _failed("deleted", key, error) from error

    def delete_folder(self, folder: str) -> None:
        """Forget every key below `folder`, and what a crash in the middle of a write has left there."""
        path = self._path(folder)
        try:
            if path.is_dir():
                shutil.rmtree(path)
                _sync_folder(path.parent)
        except OSError as error:
            raise _failed("deleted", folder, error) from error

    def url(self, key: str) -> str | None:
        """Where a browser can read `key`, if anywhere."""
        return f"{self.public_url}/assets/{'/'.join(segments(key))}" if self.public_url else None

    def check(self) -> None:
        """Write, read and delete a small probe. Raises `StorageError` with the reason."""
        key, probe = f"ourvidz-probe/{secrets.token_hex(8)}", secrets.token_bytes(64)
        self.put(key, probe, content_type="application/octet-stream")
        try:
            found = self.get(key)
        except NotFound:
            found = b""
        self.delete(key)
        if found != probe:
            raise StorageError(f"What was just written to {self.root} reads back differently.")

    def _path(self, key: str) -> Path:
        """The file of a key. A link inside the root may not lead out of it."""
        path = self.root.joinpath(*segments(key))
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError) as error:  # a circle of links
            raise StorageError(f"{key} cannot be found: {error}") from error
        if not inside:
            raise StorageError(f"{key} leads out of the storage directory.")
        return path


def _failed(verb: str, key: str, error: OSError) -> StorageError:
    """The operating system's reason without its path: callers see this message."""
    return StorageError(f"{key} could not be {verb}: {error.strerror or type(error).__name__}.")


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents so that they survive a loss of power."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _write_through(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's names."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
