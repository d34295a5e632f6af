"""The protocol of storage back ends.

A key is `{bucket}/{path}` with segments of `[A-Za-z0-9._:-]`, none of them dots only.
"""

from __future__ import annotations

from typing import Protocol


class Store(Protocol):
    """Stores bytes by key.

    Every failure is a `StorageError`; a malformed key is `InvalidParameters(field="key")`. Safe to share
    between threads.
    """

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store `data` under `key`, replacing what was there. Readers see the old or the new bytes, never a
        part of them."""

    def get(self, key: str) -> bytes:
        """Read the bytes under `key`. Raises `NotFound` if there are none."""

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""

    def move(self, source: str, key: str) -> None:
        """Move the bytes under `source` to `key`, replacing what was there: readers see the old or the new
        bytes. Raises `NotFound` if there are none under `source`: of two moves of one file only one succeeds,
        and a file that was deleted does not come back.

        A rename, or where there is none a copy by the server followed by a deletion of `source` (S3, Supabase
        Storage): the bytes do not pass through this process.
        """

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below `folder` that have keys."""

    def delete(self, key: str) -> None:
        """Delete `key`. Safe to call twice."""

    def delete_folder(self, folder: str) -> None:
        """Delete every key that starts with `folder` and a slash. Safe to call twice."""

    def url(self, key: str) -> str | None:
        """The URL at which a browser can read `key`; None if there is none."""

    def check(self) -> None:
        """Write, read and delete a probe. Raises `StorageError` with the reason if that fails."""
