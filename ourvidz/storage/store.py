"""The protocol of storage back ends.

A key is `{bucket}/{path}` with segments of `[A-Za-z0-9._:-]`, none of them dots only. `get`, `stat`,
`exists`, `urls` and `open_file` also take the keys of files that users have named: see `ourvidz.file_names`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of a stored file without reading it.

    `size` is in bytes, `modified_at` in seconds since 1970 by the storage's clock. `content_type` is None
    where the listing of a back end does not contain it; `Store.stat` always knows it.
    """

    key: str
    size: int
    modified_at: float
    content_type: str | None


class Store(Protocol):
    """Stores bytes by key.

    Every failure is a `StorageError`; a malformed key is `InvalidParameters(field="key")`. Safe to share
    between threads. A read that follows a completed write, move or deletion sees its result, anywhere.

    A back end may repeat single requests for a few seconds. Whole writes are repeated by the caller
    (`ourvidz.workflows.staging`), which checks its claim before each try.
    """

    @property
    def location(self) -> str:
        """Where the files are, for operators: a directory or a URL, without secrets."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store `data` under `key`, replacing what was there. Readers see the old or the new bytes, never a
        part of them. A put that failed may be repeated, also one whose answer was lost."""

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read the bytes under `key` from position `start` on, at most `length` of them; none behind the end.
        Raises `NotFound` if there is no such file."""

    def stat(self, key: str) -> StoredFile:
        """The size, time and content type of a file. Raises `NotFound` if there is none."""

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""

    def copy(self, source: str, key: str) -> None:
        """Copy the bytes and content type under `source` to `key`, replacing what was there: readers see the
        old or the new bytes. Raises `NotFound` if there are none under `source`. The server copies: the bytes
        do not pass through this process."""

    def move(self, source: str, key: str) -> None:
        """Move the bytes under `source` to `key`, replacing what was there: readers see the old or the new
        bytes. Raises `NotFound` if there are none under `source`, also if a deletion has removed it during
        the move: of two moves of one file, one after the other, only the first succeeds, and a file that was
        deleted is not published.

        A rename; where there is none, a copy by the server followed by a deletion of `source` (S3, Supabase
        Storage). Such a move that ends with `NotFound` may have left its copy at `key`: only the caller knows
        whether that is a file of another attempt by now. Two of them that overlap may both succeed. Only the
        attempt that stored a file moves it, so these two are the same move, repeated.
        """

    def list_files(self, folder: str) -> Iterator[StoredFile]:
        """Every file whose key starts with `folder` and a slash, in no particular order."""

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below `folder` that have keys, sorted."""

    def delete(self, key: str) -> None:
        """Delete `key`. Safe to call twice."""

    def delete_folder(self, folder: str) -> None:
        """Delete every key that starts with `folder` and a slash, those included that are stored meanwhile,
        by a move at the latest, until none is found. Safe to call twice."""

    def urls(self, keys: Sequence[str], *, lifetime_s: float) -> dict[str, str]:
        """URLs at which a browser can read these files, by key; a key without one is left out. Where the
        files are not public a URL is signed and ends after `lifetime_s` seconds: it must not be stored.
        Whether the files exist is not checked."""

    def open_file(self, key: str) -> BinaryIO | None:
        """A file on this machine, opened; None if this storage is elsewhere. It can be read to its end also
        if it is deleted meanwhile. Raises `NotFound` if there is no such file."""

    def create_buckets(self) -> list[str]:
        """Create the buckets, or the directory, that are missing. Returns their names."""

    def check_access(self) -> None:
        """Ask the storage whether it accepts the configured key and has the buckets; a process that writes
        does so when it starts. Raises `SettingsError` if not, `StorageError` if there is no answer."""

    def check(self) -> None:
        """Write, read and delete a probe. Raises `StorageError` with the reason if that fails."""
