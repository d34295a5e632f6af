"""Storage in a local directory."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from ourvidz.errors import NotFound, StorageError
from ourvidz.storage.keys import split_key

_NOT_FOUND_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class LocalStore:
    """Stores every key as a file under `root`; implements `Store`.

    `public_url` is the scheme, host and port of the shim, which serves the files under `/assets/`.
    """

    def __init__(self, root: Path, public_url: str | None = None) -> None:
        self.root = root
        self.public_url = public_url.rstrip("/") if public_url else None

    def put(self, key: str, data: bytes, *, content_type: str) -> None:  # noqa: ARG002  files have none
        """Store `data` under `key`, replacing what was there. Readers see the old or the new bytes, never a
        part of them, even after a loss of power."""
        path = self._path(key)
        # No key can name this file: "~" is not allowed in keys.
        temporary = path.with_name(f"~{secrets.token_hex(8)}")
        try:
            _make_folder(path.parent)
            try:
                _write_synced(temporary, data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as error:
            raise _error("written", key, error) from error

    def get(self, key: str) -> bytes:
        """Read the bytes under `key`. Raises `NotFound` if there are none."""
        try:
            return self._path(key).read_bytes()
        except _NOT_FOUND_ERRORS:
            raise NotFound(f"There is nothing under {key}.", field="key", value=key) from None
        except OSError as error:
            raise _error("read", key, error) from error

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""
        try:
            return self._path(key).is_file()
        except OSError as error:
            raise _error("read", key, error) from error

    def move(self, source: str, key: str) -> None:
        """Move the bytes under `source` to `key`, replacing what was there. Raises `NotFound` if there are
        none under `source`."""
        path, target = self._path(source), self._path(key)
        try:
            if not path.is_file():
                raise NotFound(f"There is nothing under {source}.", field="key", value=source)
            _make_folder(target.parent)
            path.replace(target)
            # A rename is one change on disk: the old name does not come back without the new one.
            _sync_folder(target.parent)
        except _NOT_FOUND_ERRORS:
            raise NotFound(f"There is nothing under {source}.", field="key", value=source) from None
        except OSError as error:
            raise _error("moved", source, error) from error

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below `folder`."""
        try:
            return sorted(path.name for path in self._path(folder).iterdir() if path.is_dir())
        except _NOT_FOUND_ERRORS:
            return []
        except OSError as error:
            raise _error("read", folder, error) from error

    def delete(self, key: str) -> None:
        """Delete `key`. Safe to call twice."""
        try:
            if self.exists(key):
                self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise _error("deleted", key, error) from error

    def delete_folder(self, folder: str) -> None:
        """Delete every key below `folder`, and temporary files that a crash during a write has left there.
        A parent that begins with a dot is deleted with its last folder."""
        path = self._path(folder)
        try:
            if path.is_dir() and not _remove_empty(path):
                shutil.rmtree(path)
                _sync_folder(path.parent)
            if path.parent.name.startswith("."):
                with suppress(OSError):
                    path.parent.rmdir()
        except OSError as error:
            raise _error("deleted", folder, error) from error

    def url(self, key: str) -> str | None:
        """The URL of `key` on the shim; None without a `public_url`."""
        return f"{self.public_url}/assets/{'/'.join(split_key(key))}" if self.public_url else None

    def check(self) -> None:
        """Write, read and delete a probe. Raises `StorageError` with the reason if that fails."""
        key, probe = f"ourvidz-probe/{secrets.token_hex(8)}", secrets.token_bytes(64)
        self.put(key, probe, content_type="application/octet-stream")
        try:
            stored = self.get(key)
        except NotFound:
            stored = b""
        self.delete(key)
        if stored != probe:
            raise StorageError(f"What was just written to {self.root} reads back differently.")

    def _path(self, key: str) -> Path:
        """The path of a key. Raises `StorageError` if symbolic links resolve to a path outside the root."""
        path = self.root.joinpath(*split_key(key))
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError) as error:  # a loop of links
            raise StorageError(f"{key} cannot be found: {error}") from error
        if not inside:
            raise StorageError(f"{key} leads out of the storage directory.")
        return path


def _error(verb: str, key: str, error: OSError) -> StorageError:
    """A storage error with the reason of the operating system. It names the key, not the path: callers see
    it."""
    return StorageError(f"{key} could not be {verb}: {error.strerror or type(error).__name__}.")


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, and sync each to disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _remove_empty(folder: Path) -> bool:
    """Remove a folder without files. Returns whether it was one; if it came back, nothing would be in it."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the directory entries of a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
