"""Whether the files of a checkpoint are the ones that were published: the `SHA256SUMS` beside them.

The list is what `sha256sum` writes, so `sha256sum -c SHA256SUMS` checks the same without this project.
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
    """Compare every file under `folder` with its `SHA256SUMS`; a folder without one is taken as it is.

    `ModelLoadError` names the first file that is missing, changed or not listed.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    try:
        problem = next(_problems(folder), None)
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ModelLoadError(f"{folder} could not be checked: {unreadable}") from unreadable
    if problem is not None:
        raise ModelLoadError(problem)


def _problems(folder: Path) -> Iterator[str]:
    """The cheap ones first: names before contents."""
    listed = _listed(folder / CHECKSUMS)
    found = _found(folder)
    yield from (
        f"{folder / name} is missing: {CHECKSUMS} lists it." for name in sorted(listed.keys() - found)
    )
    yield from (f"{folder / name} is not listed in {CHECKSUMS}." for name in sorted(found - listed.keys()))
    for name, digest in listed.items():
        if digest_of(folder / name) != digest:
            yield f"{folder / name} is not the file that {CHECKSUMS} lists: it has changed."


def _listed(checksums: Path) -> dict[str, str]:
    """Digest by name. A name that leads out of the folder is refused before anything is read there."""
    listed = {}
    for number, line in enumerate(checksums.read_text().splitlines(), start=1):
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise ModelLoadError(f"{checksums}, line {number}: not a SHA-256 digest and a file name.")
        digest, name = parts.groups()
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelLoadError(f"{checksums}, line {number}: {name} lies outside the folder.")
        listed[PurePosixPath(name).as_posix()] = digest
    return listed


def _found(folder: Path) -> set[str]:
    """Every name under `folder` that is no directory. A link to a directory counts as a file, which no list
    has: what lies behind it could be anywhere."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path != folder / CHECKSUMS
    }


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
