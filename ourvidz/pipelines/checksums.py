"""Verifies that a checkpoint's files are the published ones, against the `SHA256SUMS` file beside them.

The file has the format of `sha256sum`, so `sha256sum -c SHA256SUMS` performs the same check.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ourvidz.errors import ModelLoadError

CHECKSUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def verify(folder: Path) -> None:
    """Compare every file under `folder` with its `SHA256SUMS`. A folder without that file is not checked.

    Raises `ModelLoadError` naming the first file that is missing, changed or not listed.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    try:
        problem = next(_problems(folder), None)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{folder} could not be checked: {error}") from error
    if problem is not None:
        raise ModelLoadError(problem)


def listed(folder: Path) -> dict[str, str]:
    """SHA-256 digest by file name from the `SHA256SUMS` of a folder; empty without that file. Raises
    `ModelLoadError` for a malformed list."""
    return _listed_digests(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else {}


def _problems(folder: Path) -> Iterator[str]:
    """Messages about wrong files; the file names are checked before the contents, which takes longer."""
    digests = _listed_digests(folder / CHECKSUMS)
    present = _file_names(folder)
    yield from (
        f"{folder / name} is missing: {CHECKSUMS} lists it." for name in sorted(digests.keys() - present)
    )
    yield from (f"{folder / name} is not listed in {CHECKSUMS}." for name in sorted(present - digests.keys()))
    for name, digest in digests.items():
        if sha256_of(folder / name) != digest:
            yield f"{folder / name} is not the file that {CHECKSUMS} lists: it has changed."


def _listed_digests(checksums: Path) -> dict[str, str]:
    """SHA-256 digest by file name. Raises `ModelLoadError` for a malformed line and for a name that leads
    outside the folder."""
    digests = {}
    for number, line in enumerate(checksums.read_text().splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ModelLoadError(f"{checksums}, line {number}: not a SHA-256 digest and a file name.")
        digest, name = match.groups()
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelLoadError(f"{checksums}, line {number}: {name} lies outside the folder.")
        digests[PurePosixPath(name).as_posix()] = digest
    return digests


def _file_names(folder: Path) -> set[str]:
    """Relative names of everything under `folder` that is not a directory. A symbolic link to a directory
    counts as a file, which no list contains: its target could be anywhere."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path != folder / CHECKSUMS
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
