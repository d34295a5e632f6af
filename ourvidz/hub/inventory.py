"""What a pull would bring, and what of it is there: sizes from the disk, the hub or the documentation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ourvidz.errors import HubError
from ourvidz.hub.catalog import Part
from ourvidz.hub.manifest import Manifest, changed_files, read_manifest
from ourvidz.hub.selection import WEIGHTS, select_files
from ourvidz.hub.staging import staged_bytes

if TYPE_CHECKING:
    from ourvidz.hub.client import Hub

State = Literal["complete", "other revision", "own files", "partial", "absent"]


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """One part of a plan. `size_bytes` is None where nobody knows it; `size_from` says who does. `have_bytes`
    are there already. `problem` is why it cannot be pulled as it is."""

    part: Part
    state: State
    size_bytes: int | None
    size_from: Literal["disk", "hub", "documentation", "nobody"]
    files: int | None
    licence: str | None
    commit: str | None
    have_bytes: int = 0
    problem: str | None = None

    @property
    def missing_bytes(self) -> int:
        """What is still to be downloaded, as far as it is known."""
        if self.state in ("complete", "own files"):
            return 0
        return max(0, (self.size_bytes or 0) - self.have_bytes)


def plan_part(part: Part, hub: Hub | None) -> PlannedPart:
    """The plan for one part. Without a `hub`, or if it cannot be reached, sizes are the documented ones."""
    try:
        manifest = read_manifest(part.folder)
    except HubError as error:
        return _unread(part, "absent", error.message)
    if manifest is not None and (manifest.repository, manifest.revision) != (part.repository, part.revision):
        return _plan_replacement(part, hub, manifest)
    if manifest is not None:
        problem = next(changed_files(part.folder, manifest, contents=False), None)
        return PlannedPart(
            part,
            "complete",
            manifest.size_bytes,
            "disk",
            len(manifest.files),
            manifest.licence,
            manifest.commit,
            manifest.size_bytes,
            problem,
        )
    if has_files(part.folder):
        size = sum(file.stat().st_size for file in files_of(part.folder))
        return PlannedPart(part, "own files", size, "disk", None, None, None, size)
    have = staged_bytes(part.folder.resolve())
    return _plan_download(part, hub, "partial" if have else "absent", have)


def _plan_replacement(part: Part, hub: Hub | None, manifest: Manifest) -> PlannedPart:
    """The plan for a part whose folder has another revision than that of the setting: a pull brings what
    differs, and both lie on the disk until it is complete."""
    digests = {file.sha256 for file in manifest.files.values()}
    planned = _plan_download(part, hub, "other revision", staged_bytes(part.folder.resolve()), digests)
    present = f"it has {manifest.repository}@{manifest.revision}; a pull brings the one of the setting"
    return replace(planned, problem=f"{present} ({planned.problem})" if planned.problem else present)


def _plan_download(
    part: Part, hub: Hub | None, state: State, have: int, digests: Collection[str] = ()
) -> PlannedPart:
    """The plan for what a hub has; `have` bytes are staged, files with these digests are in the folder."""
    if hub is None:
        return _unread(part, state, None, have)
    try:
        listing = hub.listing(part, part.revision)
        files = select_files(part, listing.files)
    except HubError as error:
        return _unread(part, state, error.message, have)
    size = sum(file.size for file in files)
    # Files that are there are linked into the staging folder: they are not counted twice.
    have = max(have, sum(file.size for file in files if file.sha256 in digests))
    return PlannedPart(part, state, size, "hub", len(files), listing.licence, listing.commit, have)


def has_files(path: Path) -> bool:
    """Whether a checkpoint of somebody's own is at a path: a file, or a folder that is not empty."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def files_of(path: Path) -> list[Path]:
    """The files at a path, itself if it is one."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def weight_files(path: Path) -> list[Path]:
    """The safetensors files at a path."""
    return [file for file in files_of(path) if file.name.endswith(WEIGHTS)]


def _unread(part: Part, state: State, problem: str | None, have: int = 0) -> PlannedPart:
    size_from: Literal["documentation", "nobody"] = "documentation" if part.size_bytes else "nobody"
    return PlannedPart(part, state, part.size_bytes, size_from, None, part.licence, None, have, problem)
