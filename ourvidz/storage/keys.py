"""Where a job's files lie: fixed by job and index, so that a second attempt writes the same files."""

from __future__ import annotations

import re

from ourvidz.errors import InvalidParameters

_SEGMENT = re.compile(r"(?!\.+\Z)[A-Za-z0-9._:-]{1,255}")
"""One name between slashes; names of dots only would walk through the tree."""


def asset_folder(bucket: str, user_id: str, job_id: str) -> str:
    """Where the files of a job lie, e.g. `workspace-temp/USER/JOB`."""
    return f"{bucket}/{user_id}/{job_id}"


def asset_key(bucket: str, user_id: str, job_id: str, index: int, ending: str) -> str:
    """The key of asset `index` of a job, e.g. `workspace-temp/USER/JOB/0.png`."""
    return f"{asset_folder(bucket, user_id, job_id)}/{index}.{ending}"


def thumbnail_key(bucket: str, user_id: str, job_id: str, index: int) -> str:
    """The key of the thumbnail of asset `index`."""
    return asset_key(bucket, user_id, job_id, index, "thumb.webp")


def segments(key: str) -> list[str]:
    """The names in a key, the bucket first. `InvalidParameters(field="key")` when it is malformed."""
    names = key.split("/")
    if len(names) < 2 or not all(_SEGMENT.fullmatch(name) for name in names):
        raise InvalidParameters(
            "This is not a storage key.",
            field="key",
            rule="{bucket}/{path} of A-Z a-z 0-9 . _ : -",
            value=key,
        )
    return names
