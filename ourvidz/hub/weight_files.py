"""Weight files by their headers and sizes: which are damaged, and how many weights they have. Reads no
tensors."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import is_training_average, read_header


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


def count_weights(path: Path) -> int:
    """How many weights a safetensors file has, without averages of its training; 0 if it cannot be read."""
    try:
        tensors = read_header(path).tensors
    except ModelLoadError:
        return 0
    return sum(math.prod(info.shape) for name, info in tensors.items() if not is_training_average(name))
