"""What storage back ends on other machines have in common."""

from __future__ import annotations

from ourvidz.errors import NotFound
from ourvidz.storage import probe
from ourvidz.storage.keys import split_readable_key
from ourvidz.storage.store import Store


class RemoteStore(Store):
    """A storage that other machines can reach without this process."""

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def open_file(self, key: str) -> None:
        """None: no file is on this machine."""
        split_readable_key(key)

    def check(self) -> None:
        """Write, read and delete a probe. Raises `StorageError` with the reason if that fails."""
        probe.check(self)
