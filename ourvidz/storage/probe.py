"""The check of a storage back end: one file is written, read and deleted."""

from __future__ import annotations

import secrets

from ourvidz.errors import NotFound, StorageError
from ourvidz.storage.store import Store

FOLDER = "workspace-temp/ourvidz-probe"
"""The folder of the probes, in a bucket that every back end has."""


def check(store: Store) -> None:
    """Write, read and delete a probe. Raises `StorageError` with the reason if that fails."""
    key, data = f"{FOLDER}/{secrets.token_hex(8)}", secrets.token_bytes(64)
    store.put(key, data, content_type="application/octet-stream")
    try:
        stored = store.get(key)
    except NotFound:
        stored = b""
    store.delete(key)
    if stored != data:
        raise StorageError(f"What was just written to {store.location} reads back differently.")
