"""The check of the storage by processes that are about to use it."""

from __future__ import annotations

from ourvidz.errors import StorageError
from ourvidz.settings import Settings


def require_storage_access(settings: Settings) -> None:
    """Raise `SettingsError` if the storage refuses the configured key or has no bucket.

    A storage that does not answer is no reason not to start.
    """
    if settings.storage == "local":
        return
    from ourvidz import log
    from ourvidz.wiring.storage import open_store

    try:
        open_store(settings).check_access()
    except StorageError as error:
        log.get(__name__).warning("storage_away", reason=error.message)
