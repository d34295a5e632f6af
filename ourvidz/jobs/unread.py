"""Bounds what a job keeps without reading it: unknown fields, and fields that are passed on as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.fields import CONTAINERS, invalid_value
from ourvidz.jobs.sanitize import summarize

MAX_UNREAD_BYTES = 64 << 10
"""Of all such fields of a job together, with their names, as JSON in UTF-8."""
RULE = f"at most {MAX_UNREAD_BYTES:,} bytes, together with the other fields that are not read"
PICTURE_FIELDS = {
    "config": ("image", "first_frame", "last_frame"),
    "metadata": ("reference_image_url", "start_reference_url", "end_reference_url"),
}
PICTURE_START = "data:image/"


def without_pictures(extras: dict[str, Any]) -> dict[str, Any]:
    """Unread fields of a payload without inline pictures at the places of references. A job that reads no
    reference there, such as a text or a clip of the mode `none`, needs none of them."""
    for level, names in PICTURE_FIELDS.items():
        fields = extras.get(level)
        if isinstance(fields, dict):
            for name in names:
                value = fields.get(name)
                if isinstance(value, str) and value.startswith(PICTURE_START):
                    del fields[name]
            if not fields:
                del extras[level]
    return extras


def check_unread(extras: Mapping[str, Any], passed_on: Mapping[str, Any]) -> None:
    """Raise `InvalidParameters` for unread fields and fields that are passed on which are too large together;
    it names the largest. A body with a picture may have megabytes, but only in the picture."""
    sizes = {path: len(path.encode()) + _size(value) for path, value in _fields(extras, passed_on)}
    if sum(sizes.values()) > MAX_UNREAD_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise _too_large(str(summarize(largest)), sizes[largest])


def _fields(extras: Mapping[str, Any], passed_on: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in extras.items():
        if name in CONTAINERS and isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value
    yield from passed_on.items()


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if value is None or isinstance(value, bool):
        return 5
    return len(json.dumps(value, ensure_ascii=False).encode())


def _too_large(path: str, size: int) -> InvalidParameters:
    error = invalid_value(path, RULE, f"a value of {size:,} bytes")
    assert isinstance(error, InvalidParameters)
    return error
