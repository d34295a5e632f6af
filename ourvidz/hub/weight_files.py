"""Finds damaged weight and JSON files by their headers and sizes. Reads no tensors."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

MAX_HEADER_BYTES = 100 << 20
"""Largest header that the safetensors library accepts."""


def find_damage(path: Path) -> str | None:
    """Describe the damage of one weight or JSON file; None when the file is complete.

    A safetensors file is 8 bytes of header length, a JSON header, and data up to the highest offset in it:
    https://huggingface.co/docs/safetensors/index#format
    """
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
            return None
        return _archive_damage(path) if path.suffix == ".pth" else _safetensors_damage(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: {error}"


def _archive_damage(path: Path) -> str | None:
    """Damage of a .pth file. Only zip archives can be checked; torch before 1.6 wrote another format."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    return f"{path} is cut off" if is_zip and not zipfile.is_zipfile(path) else None


def _safetensors_damage(path: Path) -> str | None:
    """Why a safetensors file is damaged, by its header and size; None if it is complete."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            return f"{path} is no safetensors file"
        header = json.loads(file.read(length))
    ends = (tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    data = max(ends, default=0)
    expected, actual = 8 + length + data, path.stat().st_size
    return None if actual == expected else f"{path} has {actual} bytes instead of {expected}"
