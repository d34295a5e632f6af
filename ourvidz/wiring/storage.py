"""The storage back end that the settings choose."""

from __future__ import annotations

from collections.abc import Callable

from ourvidz.settings import Settings
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store


def open_store(settings: Settings) -> Store:
    """Return the configured storage. Nothing is read or written yet."""
    return _BACK_ENDS[settings.storage](settings)


def _local(settings: Settings) -> Store:
    return LocalStore(settings.storage_dir, public_url=settings.public_url)


_BACK_ENDS: dict[str, Callable[[Settings], Store]] = {"local": _local}
"""The back ends by the value of OURVIDZ_STORAGE; each imports its library when it is chosen."""
