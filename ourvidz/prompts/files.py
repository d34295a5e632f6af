"""Reads the small text files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ourvidz.errors import ModelLoadError


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises `ModelLoadError` if it is missing or damaged."""
    try:
        document = json.loads(read_text(file))
    except ValueError as error:
        raise ModelLoadError(f"{file} is not JSON.") from error
    if not isinstance(document, dict):
        raise ModelLoadError(f"{file} is not a JSON object.")
    return document


def read_text(file: Path) -> str:
    """Read a UTF-8 file. Raises `ModelLoadError` if it is missing or damaged."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file} cannot be read.") from error
