"""Checksums and size of an exported folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHECKSUMS = "SHA256SUMS"
MIB = 1 << 20


def exported_files(folder: Path) -> list[Path]:
    """The files of an export, sorted, without the list of checksums."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)


def digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over all files of the folder and make the files readable for everyone: safetensors
    writes weights with mode 600."""
    for path in exported_files(folder):
        path.chmod(0o644)
    (folder / CHECKSUMS).write_text(
        "".join(f"{digest(path)}  {path.relative_to(folder)}\n" for path in exported_files(folder))
    )


def size_mib(folder: Path) -> float:
    """The size of an export in MiB."""
    return sum(path.stat().st_size for path in exported_files(folder)) / MIB
