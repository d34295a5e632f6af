"""Storage in a local directory."""

from __future__ import annotations

import errno
import mimetypes
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from ourvidz import log
from ourvidz.errors import NotFound, StorageError
from ourvidz.file_names import is_own_key
from ourvidz.storage import probe
from ourvidz.storage.keys import is_segment, split_key, split_readable_key
from ourvidz.storage.store import StoredFile

REMOVALS = 10
"""How often the removal of a folder is tried that other threads or processes still change."""
LINK_OUT = "link_out"
"""The kind of the `StorageError` for a key that links resolve to a path outside the directory."""
_NOT_FOUND_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_log = log.get(__name__)


class LocalStore:
    """Stores every key as a file under `root`; implements `Store`.

    `public_url` is the scheme, host and port of the shim, which serves the files under `/assets/`.
    """

    def __init__(self, root: Path, public_url: str | None = None) -> None:
        self.root = root
        self.public_url = public_url.rstrip("/") if public_url else None

    @property
    def location(self) -> str:
        """The directory."""
        return str(self.root)

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

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read the bytes under `key` from position `start` on, at most `length` of them. Raises `NotFound` if
        there is no such file."""
        try:
            with self._readable_path(key).open("rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)
        except _NOT_FOUND_ERRORS:
            raise _not_found(key) from None
        except OSError as error:
            raise _error("read", key, error) from error

    def stat(self, key: str) -> StoredFile:
        """The size, time and content type of a file, the type by its suffix. Raises `NotFound`."""
        path = self._readable_path(key)
        try:
            if not path.is_file():
                raise _not_found(key)
            return _stored_file(key, path)
        except _NOT_FOUND_ERRORS:
            raise _not_found(key) from None
        except OSError as error:
            raise _error("read", key, error) from error

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""
        try:
            return self._readable_path(key).is_file()
        except OSError as error:
            raise _error("read", key, error) from error

    def copy(self, source: str, key: str) -> None:
        """Copy the bytes under `source` to `key`, replacing what was there. Raises `NotFound`."""
        self.put(key, self.get(source), content_type=_content_type(source))

    def move(self, source: str, key: str) -> None:
        """Move the bytes under `source` to `key`, replacing what was there. Raises `NotFound` if there are
        none under `source`."""
        path, target = self._path(source), self._path(key)
        try:
            if not path.is_file():
                raise _not_found(source)
            _make_folder(target.parent)
            path.replace(target)
            # A rename is one change on disk: the old name does not come back without the new one.
            _sync_folder(target.parent)
        except _NOT_FOUND_ERRORS:
            raise _not_found(source) from None
        except OSError as error:
            raise _error("moved", source, error) from error

    def list_files(self, folder: str) -> Iterator[StoredFile]:
        """Every file below `folder`, without those that are still being written."""
        top = self._path(folder)
        try:
            for place, _, names in os.walk(top, onerror=_raise_unless_gone):
                for name in names:
                    path = Path(place, name)
                    key = f"{folder}/{path.relative_to(top)}"
                    if is_own_key(key):
                        with suppress(FileNotFoundError):
                            yield _stored_file(key, path)
        except OSError as error:
            raise _error("read", folder, error) from error

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below `folder`."""
        try:
            names = [path.name for path in self._path(folder).iterdir() if path.is_dir()]
            return sorted(filter(is_segment, names))
        except _NOT_FOUND_ERRORS:
            return []
        except OSError as error:
            raise _error("read", folder, error) from error

    def delete(self, key: str) -> None:
        """Delete `key`. Safe to call twice."""
        path = self._path(key)
        try:
            if path.is_file():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _error("deleted", key, error) from error

    def delete_folder(self, folder: str) -> None:
        """Delete every key below `folder`, and temporary files that a crash during a write has left there.
        A parent that begins with a dot is deleted with its last folder."""
        path = self._path(folder)
        try:
            if path.is_dir() and not _remove_empty(path):
                _remove_tree(path)
                _sync_folder(path.parent)
            if path.parent.name.startswith("."):
                with suppress(OSError):
                    path.parent.rmdir()
        except OSError as error:
            raise _error("deleted", folder, error) from error

    def urls(self, keys: Sequence[str], *, lifetime_s: float) -> dict[str, str]:  # noqa: ARG002  unsigned
        """The URLs of `keys` on the shim, which do not end; none without a `public_url`."""
        if not self.public_url:
            return {}
        paths = {key: quote("/".join(split_readable_key(key)), safe="/:") for key in keys}
        return {key: f"{self.public_url}/assets/{path}" for key, path in paths.items()}

    def open_file(self, key: str) -> BinaryIO:
        """A file, opened. Raises `NotFound` if there is none, or links lead out of the directory;
        `StorageError` if it cannot be opened."""
        try:
            path = self._readable_path(key)
            if path.is_file():
                return path.open("rb")
        except _NOT_FOUND_ERRORS:
            pass
        except OSError as error:
            raise _error("read", key, error) from error
        except StorageError as error:
            if error.kind != LINK_OUT:
                raise
            _log.warning("link_out_of_storage", key=key)
        raise _not_found(key)

    def create_buckets(self) -> list[str]:
        """Create the directory if it is missing. Returns its path if it was; buckets are made as needed."""
        try:
            if self.root.is_dir():
                return []
            _make_folder(self.root)
        except OSError as error:
            raise StorageError(f"{self.root} could not be created: {error.strerror}.") from error
        return [str(self.root)]

    def check_access(self) -> None:
        """Nothing: a directory has no key."""

    def check(self) -> None:
        """Write, read and delete a probe. Raises `StorageError` with the reason if that fails."""
        probe.check(self)

    def _path(self, key: str) -> Path:
        """The path of a key. Raises `StorageError` if symbolic links resolve to a path outside the root."""
        return self._inside(key, split_key(key))

    def _readable_path(self, key: str) -> Path:
        """As `_path`, of a file that is only read."""
        return self._inside(key, split_readable_key(key))

    def _inside(self, key: str, segments: list[str]) -> Path:
        path = self.root.joinpath(*segments)
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError) as error:  # a loop of links
            raise StorageError(f"{key} cannot be found: {error}") from error
        if not inside:
            raise StorageError(f"{key} leads out of the storage directory.", kind=LINK_OUT)
        return path


def _error(verb: str, key: str, error: OSError) -> StorageError:
    """A storage error with the reason of the operating system. It names the key, not the path: callers see
    it."""
    return StorageError(f"{key} could not be {verb}: {error.strerror or type(error).__name__}.")


def _not_found(key: str) -> NotFound:
    return NotFound(f"There is nothing under {key}.", field="key", value=key)


def _content_type(key: str) -> str:
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, _NOT_FOUND_ERRORS):
        raise error


def _stored_file(key: str, path: Path) -> StoredFile:
    """What is known of the file at `path`. Raises `FileNotFoundError` if there is none."""
    status = path.stat()
    return StoredFile(key, status.st_size, status.st_mtime, _content_type(key))


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


def _remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it, again while files are moved into it or out of it."""
    for attempt in range(1, REMOVALS + 1):
        try:
            return shutil.rmtree(folder)
        except OSError as error:
            is_race = isinstance(error, FileNotFoundError) or error.errno == errno.ENOTEMPTY
            if not folder.exists():
                return None
            if not is_race or attempt == REMOVALS:
                raise


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
