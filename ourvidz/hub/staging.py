"""Where an unfinished pull lies, and the space of its disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from ourvidz.hub.catalog import GB

MIN_FREE_BYTES = GB
"""Space that a pull leaves on the disk for the other programs of the host."""


def staging_folder(folder: Path) -> Path:
    """Where the files of a pull lie until all are complete."""
    return folder.with_name(f"{folder.name}.partial")


def staged_bytes(folder: Path) -> int:
    """What an interrupted pull has left to continue with, in bytes."""
    staging = staging_folder(folder)
    return sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Free space of the disk on which a folder lies, or will lie."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(existing).free
