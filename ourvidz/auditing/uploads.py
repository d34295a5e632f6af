"""Uploads of checkpoints to the storage, where somebody who changes the log cannot change them too."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ourvidz import log
from ourvidz.auditing.checkpoints import FOLDER
from ourvidz.auditing.segments import sync_folder, write_file
from ourvidz.errors import OurvidzError

PENDING = "pending"
"""The folder of a log with the checkpoints that are not in the storage yet."""
RETRY_S = 30.0
CLOSE_S = 5.0
"""How long a process that stops waits for its last upload. Its successor repeats one that did not succeed."""
_log = log.get(__name__)


class StoredCheckpoint(Protocol):
    """A file in the storage."""

    @property
    def key(self) -> str:
        """Its key."""


class CheckpointStore(Protocol):
    """What is used of `ourvidz.storage.store.Store`."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store a file."""

    def get(self, key: str) -> bytes:
        """Read a file. Raises `NotFound`."""

    def list_files(self, folder: str) -> Iterable[StoredCheckpoint]:
        """The files below a folder."""

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below a folder."""

    def delete(self, key: str) -> None:
        """Delete a file."""


def checkpoint_keys(store: CheckpointStore, log_id: str) -> list[str]:
    """The keys of a log's checkpoints, the shortest first. Raises `StorageError`."""
    return sorted(file.key for file in store.list_files(f"{FOLDER}/{log_id}"))


class CheckpointUploader:
    """Uploads the pending checkpoints of one log from a thread of its own; what fails is tried again."""

    def __init__(self, folder: Path, log_id: str, store: CheckpointStore) -> None:
        self._pending = folder / PENDING
        self._pending.mkdir(mode=0o700, exist_ok=True)
        self._log_id = log_id
        self._store = store
        self._oldest = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="audit-uploads", daemon=True)
        self._wake.set()
        self._thread.start()

    def add(self, name: str, note: bytes) -> None:
        """Keep a checkpoint until it is in the storage. Raises `OSError`."""
        write_file(self._pending / name, note)
        self._wake.set()

    def forget_before(self, size: int) -> None:
        """Delete the checkpoints of fewer entries: what they were compared with is gone."""
        self._oldest = size
        self._wake.set()

    def close(self) -> None:
        """Try once more, and end."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        failed = False
        while True:
            self._wake.wait(RETRY_S if failed else None)
            self._wake.clear()
            closing = self._closing
            try:
                self._upload()
                failed = False
            except (OSError, OurvidzError) as error:
                if not failed:
                    _log.warning("audit_upload_failed", log=self._log_id, reason=str(error))
                failed = True
            if closing:
                return

    def _upload(self) -> None:
        folder = f"{FOLDER}/{self._log_id}"
        waiting = sorted(path for path in self._pending.iterdir() if not path.name.startswith("~"))
        for path in waiting:
            self._store.put(f"{folder}/{path.name}", path.read_bytes(), content_type="text/plain")
            path.unlink()
        if waiting:
            sync_folder(self._pending)
        if self._oldest:
            for key in checkpoint_keys(self._store, self._log_id):
                size = key.rpartition("/")[2].partition("-")[0]
                if size.isdigit() and int(size) < self._oldest:
                    self._store.delete(key)
            self._oldest = 0
