"""Finds damaged weight and JSON files by their headers and sizes. Reads no tensors."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import read_header


def find_damage(path: Path) -> str | None:
    """Describe the damage of one weight or JSON file; None when the file is complete."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
            return None
        if path.suffix == ".pth":
            return _archive_damage(path)
        read_header(path)
        return None
    except ModelLoadError as error:
        return error.message
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: {error}"


def _archive_damage(path: Path) -> str | None:
    """Damage of a .pth file. Only zip archives can be checked; torch before 1.6 wrote another format."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    return f"{path} is cut off" if is_zip and not zipfile.is_zipfile(path) else None
