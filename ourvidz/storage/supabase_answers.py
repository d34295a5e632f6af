"""What the Storage API of Supabase says of files.

Raises `TypeError`, `KeyError`, `ValueError` or `AttributeError` for documents of another form.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ourvidz.storage.store import StoredFile


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing. `folders` are names with a slash at the end; `cursor` continues it, if there is
    more."""

    files: list[StoredFile]
    folders: list[str]
    cursor: str | None


def parse_page(bucket: str, prefix: str, page: dict[str, Any]) -> Page:
    """The files and folders of a page whose names start with `prefix`. In the server's comparison `_` stands
    for any character, and case may not count, so that a page may contain others, even nothing else."""
    files = [
        # An object without details is one whose upload was cut off.
        describe(f"{bucket}/{entry['name']}", entry, *_size_and_type(entry.get("metadata") or {}))
        for entry in page["objects"]
        if entry["name"].startswith(prefix)
    ]
    folders = [entry["name"] for entry in page["folders"] if entry["name"].startswith(prefix)]
    return Page(files, folders, page.get("nextCursor") if page.get("hasNext") else None)


def describe(key: str, entry: dict[str, Any], size: Any, content_type: Any) -> StoredFile:
    """What is known of a file, from its entry in a listing or from its own description."""
    modified = entry.get("last_modified") or entry.get("updated_at") or entry["created_at"]
    modified_at = datetime.fromisoformat(modified).timestamp()
    return StoredFile(key, int(size), modified_at, content_type if isinstance(content_type, str) else None)


def _size_and_type(details: dict[str, Any]) -> tuple[Any, Any]:
    return details.get("size", 0), details.get("mimetype")
