"""The storage protocol.

A key is `{bucket}/{path}` with segments of `[A-Za-z0-9._:-]`, none of them dots only.
"""

from __future__ import annotations

from typing import Protocol


class Store(Protocol):
    """Somewhere that keeps bytes by key. Every failure is a `StorageError`; a malformed key is
    `InvalidParameters(field="key")`."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Keep `data` under `key`, replacing what was there. All of it or nothing is readable after."""

    def get(self, key: str) -> bytes:
        """What is kept under `key`. `NotFound` when nothing is."""

    def exists(self, key: str) -> bool:
        """Whether `get` would find something."""

    def delete(self, key: str) -> None:
        """Forget `key`. Safe to call twice."""

    def delete_folder(self, folder: str) -> None:
        """Forget every key that starts with `folder` and a slash. Safe to call twice."""

    def url(self, key: str) -> str | None:
        """Where a browser can read `key`, if anywhere."""

    def check(self) -> None:
        """Write, read and delete a small probe. Raises `StorageError` with the reason."""
