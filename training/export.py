"""What every exported folder has: its files, their checksums, its size."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHECKSUMS = "SHA256SUMS"
MIB = 1 << 20


def shipped(folder: Path) -> list[Path]:
    """Every file of an export but the list of checksums itself."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; `sha256sum -c SHA256SUMS` checks the same."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_checksums(folder: Path) -> None:
    """Write the list of checksums over everything that is in the folder now, for everyone to read: weights
    are written for their owner's eyes alone."""
    for path in shipped(folder):
        path.chmod(0o644)
    (folder / CHECKSUMS).write_text(
        "".join(f"{digest(path)}  {path.relative_to(folder)}\n" for path in shipped(folder))
    )


def size_mib(folder: Path) -> float:
    """How large an export is."""
    return sum(path.stat().st_size for path in shipped(folder)) / MIB
