"""Pulls a checkpoint: into a folder beside its own, which takes its name when all files are complete.

So a folder that exists is complete, also after a pull was killed, and the next pull continues there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ourvidz.errors import HubError
from ourvidz.hub.catalog import GB, Part
from ourvidz.hub.client import Hub, Listing
from ourvidz.hub.download import download, part_path
from ourvidz.hub.manifest import (
    MANIFEST,
    Manifest,
    PulledFile,
    changed_files,
    read_manifest,
    sha256_of,
    unused,
    write_manifest,
)
from ourvidz.hub.progress import Progress
from ourvidz.hub.selection import WEIGHTS, HubFile, select_files
from ourvidz.hub.staging import (
    MIN_FREE_BYTES,
    disk_errors,
    finish_publication,
    free_bytes,
    publish,
    pull_lock,
    staging_folder,
)


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result for one part: `present` if nothing had to be done. `downloaded` is in bytes; the rest was
    there already, or in another pulled folder."""

    part: Part
    manifest: Manifest
    state: Literal["pulled", "present"]
    downloaded: int = 0


def pull(
    hub: Hub, part: Part, progress: Progress, *, update: bool = False, others: Sequence[Path] = ()
) -> Pulled:
    """Pull one part and return what is in its folder. `update`: also if the folder has the revision that is
    asked for, whose branch may have moved. `others` are folders of earlier pulls: files that they have too
    are not downloaded again. Raises `HubError`."""
    part = replace(part, folder=part.folder.resolve())

    def waiting() -> None:
        progress.note(f"another process pulls into {part.folder}: waiting for it")

    with pull_lock(part.folder, waiting):
        with disk_errors(part.folder):
            finish_publication(part.folder)
        existing = _existing(part)
        asked = (part.repository, part.revision)
        if existing is not None and not update and (existing.repository, existing.revision) == asked:
            problem = next(changed_files(part.folder, existing, contents=False), None)
            if problem is None:
                return Pulled(part, existing, "present")
            progress.note(f"{problem}: it is pulled again")
        staging = staging_folder(part.folder)
        commit = None if update else _resumed_commit(staging, part)
        listing = hub.listing(part, commit or part.revision)
        return _pull_files(hub, part, listing, staging, progress, [part.folder, *others])


def _pull_files(
    hub: Hub, part: Part, listing: Listing, staging: Path, progress: Progress, others: Sequence[Path]
) -> Pulled:
    """Bring all files of a commit into the staging folder, then give it the folder's name."""
    selected = select_files(part, listing.files)
    with disk_errors(staging):
        staging.mkdir(parents=True, exist_ok=True)
        if not _is_of(staging, part, listing.commit):
            _remove_different(staging, selected)
        _write_note(staging, part, listing.commit)
        _remove_other_files(staging, selected)
        linked = _find_elsewhere([file for file in selected if not (staging / file.name).is_file()], others)
    _require_space(part, staging, [file for file in selected if file.name not in linked])
    files: dict[str, PulledFile] = {}
    downloaded = 0
    for file in selected:
        with disk_errors(staging):
            pulled = _reuse(file, staging, linked.get(file.name))
        if pulled is None:
            pulled = download(hub, part, file, listing.commit, staging, progress)
            downloaded += pulled.size
        files[file.name] = pulled
    manifest = Manifest(part.repository, part.revision, listing.commit, files, listing.licence)
    with disk_errors(part.folder), unused(part.folder):
        _note_path(staging).unlink()
        write_manifest(staging, manifest)
        publish(part.folder)
    return Pulled(part, manifest, "pulled", downloaded)


def _existing(part: Part) -> Manifest | None:
    """The manifest of the target folder. Raises `HubError` for files that were not pulled."""
    folder = part.folder
    if folder.suffix == WEIGHTS:
        raise HubError(
            f"{folder} is the name of a file, and a folder is pulled: unset the setting that names it, or let"
            " it name a folder"
        )
    if os.path.ismount(folder):
        raise HubError(f"{folder} is a mount point, which cannot be replaced: name a folder inside it")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise HubError(
            f"{folder} has files that were not pulled: move them away, or let the setting that names them"
            " point to another folder"
        )
    return read_manifest(folder)


def _reuse(file: HubFile, staging: Path, elsewhere: Path | None) -> PulledFile | None:
    """A file that an earlier pull completed, here or in another folder; None if there is none."""
    target = staging / file.name
    if elsewhere is not None and not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another disk, or one without links: the file is downloaded
            os.link(elsewhere, target)
    if not target.is_file() or target.stat().st_size != file.size:
        return None
    # A complete file was verified before it got its name.
    return PulledFile(file.size, file.sha256 or sha256_of(target))


def _find_elsewhere(files: Sequence[HubFile], folders: Sequence[Path]) -> Mapping[str, Path]:
    """Name → an equal file of a pulled folder, for those files that have one."""
    by_digest = {file.sha256: file for file in files if file.sha256}
    linked: dict[str, Path] = {}
    for folder in folders:
        with suppress(HubError):
            manifest = read_manifest(folder)
            for name, pulled in manifest.files.items() if manifest else ():
                file, path = by_digest.get(pulled.sha256), folder / name
                if file is None or file.name in linked or not path.is_file():
                    continue
                if path.stat().st_size == file.size and sha256_of(path) == file.sha256:
                    linked[file.name] = path
    return linked


def _require_space(part: Part, staging: Path, files: Sequence[HubFile]) -> None:
    """Raises `HubError` unless the disk has space for what is still to be downloaded."""
    needed = 0
    for file in files:
        candidates = (staging / file.name, part_path(staging, file))
        have = max((path.stat().st_size for path in candidates if path.is_file()), default=0)
        needed += max(0, file.size - have)
    free = free_bytes(staging)
    if needed and needed + MIN_FREE_BYTES > free:
        raise HubError(
            f"{part.name} needs {needed / GB:.1f} GB more and {MIN_FREE_BYTES / GB:.0f} GB to spare, and"
            f" {free / GB:.1f} GB are free on the disk of {part.folder}: free space, or set"
            " OURVIDZ_MODELS_DIR to a folder on another disk"
        )


def _remove_other_files(staging: Path, selected: Sequence[HubFile]) -> None:
    """Delete what an interrupted pull of another commit left."""
    expected = {staging / file.name for file in selected} | {part_path(staging, file) for file in selected}
    for path in staging.rglob("*"):
        if path.is_file() and path not in expected and path != _note_path(staging):
            path.unlink()


def _is_of(staging: Path, part: Part, commit: str) -> bool:
    """Whether the files that are there were verified as those of this commit."""
    with suppress(OSError, ValueError):
        repository, _, noted = _note_path(staging).read_text(encoding="utf-8").split()
        return (repository, noted) == (part.repository, commit)
    return False


def _remove_different(staging: Path, selected: Sequence[HubFile]) -> None:
    """Delete complete files of another commit: those of two revisions often have equal names and sizes."""
    for file in selected:
        path = staging / file.name
        if path.is_file() and (file.sha256 is None or sha256_of(path) != file.sha256):
            path.unlink()


def _note_path(staging: Path) -> Path:
    return staging / "pulling.txt"


def _write_note(staging: Path, part: Part, commit: str) -> None:
    """Note which commit is pulled: a branch may move before the pull is continued."""
    _note_path(staging).write_text(f"{part.repository} {part.revision} {commit}\n", encoding="utf-8")


def _resumed_commit(staging: Path, part: Part) -> str | None:
    """The commit that an interrupted pull of the same revision had begun; None without one."""
    with suppress(OSError, ValueError):
        repository, revision, commit = _note_path(staging).read_text(encoding="utf-8").split()
        if (repository, revision) == (part.repository, part.revision):
            return commit
    return None
