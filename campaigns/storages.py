"""Where a campaign's installation stores its files, and how that is broken."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from campaigns.resource import Resource
from campaigns.s3_server import S3Server
from campaigns.supabase import SupabaseServer
from ourvidz.auditing.checkpoints import FOLDER as AUDIT
from ourvidz.errors import NotFound
from ourvidz.settings import load_settings
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.wiring.storage import open_store

BUCKET = "campaign"


class CampaignStorage(Resource):
    """A storage that exists before the installation; use it as a context manager."""

    store: Store

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The settings with which an installation uses it."""

    @abstractmethod
    def stored_keys(self) -> list[str]:
        """The keys of everything that is stored."""

    def keys_of_jobs(self) -> list[str]:
        """The keys of everything that is stored, but for the audit log of shims."""
        return [key for key in self.stored_keys() if not key.startswith(f"{AUDIT}/")]

    def read(self, key: str) -> bytes:
        """Read a file. Raises `OSError` if there is none."""
        try:
            return self.store.get(key)
        except NotFound:
            raise FileNotFoundError(key) from None


class RemoteFiles(CampaignStorage):
    """A storage on a server."""

    @abstractmethod
    def overload(self, on: bool) -> None:
        """Answer every request with 503, or none any more."""

    @abstractmethod
    def cut_connections(self) -> None:
        """Close every connection, also those with a request in progress."""


class LocalFiles(CampaignStorage):
    """A directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.store = LocalStore(folder)

    def _open(self) -> None:
        pass

    def environment(self) -> dict[str, str]:
        """The directory."""
        return {"OURVIDZ_STORAGE_DIR": str(self.folder)}

    def stored_keys(self) -> list[str]:
        """The paths of all files in the directory, also of those that are being written."""
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]


class S3Files(RemoteFiles):
    """A bucket on a server with the API of S3, in this process."""

    def __init__(self, folder: Path) -> None:  # noqa: ARG002  as of the others
        super().__init__()
        self.server = S3Server()

    def _open(self) -> None:
        # Imported here: only this storage needs its library.
        from ourvidz.storage.s3 import S3Store
        from ourvidz.storage.s3_client import S3Options

        self._cleanup.enter_context(self.server)
        self.store = S3Store(
            S3Options(
                bucket=BUCKET,
                endpoint=self.server.url,
                access_key_id=self.server.access_key,
                secret_access_key=self.server.secret_key,
            )
        )
        self.store.create_buckets()

    def environment(self) -> dict[str, str]:
        """The bucket, the server and its key."""
        return self.server.environment(BUCKET)

    def stored_keys(self) -> list[str]:
        """The keys of all objects."""
        return self.server.stored_keys(BUCKET)

    def overload(self, on: bool) -> None:
        """Answer every request with 503, or none any more."""
        (self.server.overloaded.set if on else self.server.overloaded.clear)()

    def cut_connections(self) -> None:
        """Close every connection, also those with a request in progress."""
        self.server.cut_connections()


class SupabaseFiles(RemoteFiles):
    """The buckets of a server with the Storage API of Supabase, in a process of its own."""

    def __init__(self, folder: Path) -> None:  # noqa: ARG002  as of the others
        super().__init__()
        self.server = SupabaseServer()

    def _open(self) -> None:
        self._cleanup.enter_context(self.server)
        self.store = open_store(load_settings(_env_file=None, **self.environment()))
        self.store.create_buckets()

    def environment(self) -> dict[str, str]:
        """The URL of the project, and its key."""
        return self.server.environment()

    def stored_keys(self) -> list[str]:
        """The keys of all objects."""
        return self.server.stored_keys()

    def overload(self, on: bool) -> None:
        """Answer every request with 503, or none any more."""
        self.server.overload(on)

    def cut_connections(self) -> None:
        """Close every connection, also those with a request in progress."""
        self.server.cut_connections()


STORAGES: dict[str, Callable[[Path], CampaignStorage]] = {
    "local": LocalFiles,
    "s3": S3Files,
    "supabase": SupabaseFiles,
}
"""The storages by the name that `--storage` takes."""
