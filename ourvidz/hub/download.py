"""Downloads one file of a repository: continues where an earlier process ended, and verifies the content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from ourvidz.errors import HubError
from ourvidz.hub.catalog import Part
from ourvidz.hub.client import Hub, Interrupted
from ourvidz.hub.manifest import PulledFile
from ourvidz.hub.progress import Progress
from ourvidz.hub.selection import WEIGHTS, HubFile
from ourvidz.hub.staging import disk_errors
from ourvidz.hub.weight_files import find_damage


class _Content:
    """What is known of a file's content: its size and digests, computed while it is written."""

    def __init__(self, size: int) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)

    def add(self, block: bytes) -> None:
        self.size += len(block)
        self._sha256.update(block)
        self._blob.update(block)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def equals(self, file: HubFile) -> bool:
        """Whether this is the content that the hub lists: by SHA-256, or as a git object."""
        digest = file.sha256 or file.blob_id
        return digest == (self.sha256 if file.sha256 else self._blob.hexdigest())


def part_path(folder: Path, file: HubFile) -> Path:
    """Where a file lies until it is complete. The name contains its digest: parts of different revisions are
    never mixed."""
    return folder / f"{file.name}.{(file.sha256 or file.blob_id)[:16]}.part"


def download(
    hub: Hub, part: Part, file: HubFile, commit: str, folder: Path, progress: Progress
) -> PulledFile:
    """Download a file into `folder` and verify it. Raises `HubError`; what has arrived is kept."""
    target, partial = folder / file.name, part_path(folder, file)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        content = _download_verified(hub, part, file, commit, partial, progress)
        if target.name.endswith(WEIGHTS) and (damage := find_damage(partial)):
            partial.unlink()
            raise HubError(
                f"{part.repository}: {damage.replace(str(partial), file.name)} Do not use this revision."
            )
        partial.replace(target)
    return PulledFile(content.size, content.sha256)


def _download_verified(
    hub: Hub, part: Part, file: HubFile, commit: str, partial: Path, progress: Progress
) -> _Content:
    """Download until the content is the listed one; once again from the beginning if it is not."""
    for last in (False, True):
        done = partial.stat().st_size if partial.is_file() else 0
        progress.begin(file.name, file.size, min(done, file.size))
        with partial.open("ab") as output:
            content = _fill(hub, part, file, commit, partial, output, progress)
            output.flush()
            os.fsync(output.fileno())
        if content.equals(file):
            progress.end()
            return content
        partial.unlink()
        if not last:
            progress.note(f"{file.name}: the checksum differs from the hub's, it is downloaded again")
    raise HubError(
        f"{part.repository}: {file.name} has not the checksum that the hub lists, twice: try again later, or"
        " through another network"
    )


def _fill(
    hub: Hub, part: Part, file: HubFile, commit: str, partial: Path, output: BinaryIO, progress: Progress
) -> _Content:
    """Append to a partial file until it has its size."""
    content = _read(partial, file)
    retries = hub.retries()
    while content.size < file.size:
        before = content.size
        try:
            with hub.open(part, file, commit, start=content.size) as (position, blocks):
                if position != content.size:
                    progress.advance(-content.size)
                    output.truncate(0)
                    content = _Content(file.size)
                for block in blocks:
                    if content.size + len(block) > file.size:
                        raise HubError(
                            f"{part.repository}: {file.name} is larger than the {file.size} bytes that"
                            " the hub lists: try again later"
                        )
                    output.write(block)
                    content.add(block)
                    progress.advance(len(block))
                    retries.progressed()
            if content.size == before:
                raise Interrupted("it sends nothing")
        except Interrupted as interrupted:
            retries.failed(interrupted, part.repository)
    return content


def _read(partial: Path, file: HubFile) -> _Content:
    """The content of a partial file; it is emptied if it is longer than the file."""
    content = _Content(file.size)
    with partial.open("r+b") as existing:
        if os.fstat(existing.fileno()).st_size > file.size:
            existing.truncate(0)
        while block := existing.read(1 << 20):
            content.add(block)
    return content
