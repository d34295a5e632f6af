"""Identifies weights by the content of their files, so that results computed with others are not mistaken
for theirs.

The digests of `SHA256SUMS` are used where a checkpoint has them. Reading tens of gigabytes at every start
would take longer than loading them, so other files are sampled: their size and 16 blocks of 64 KiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ourvidz.hub.manifest import MANIFEST
from ourvidz.pipelines import checksums
from ourvidz.pipelines.checkpoints import Checkpoint

_LISTS = (checksums.CHECKSUMS, MANIFEST)

BLOCK_BYTES = 1 << 16
"""Size of one sampled block."""
BLOCKS = 16
"""Sampled blocks of a file, evenly spaced from its beginning to its end."""


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """`sha256:` and a digest of all files of a checkpoint, if `SHA256SUMS` lists each of them; otherwise
    `sampled:` and a digest of the sampled files. Equal files in equal places have equal hashes. Raises
    `ModelLoadError` for a malformed list, `OSError` for a file that cannot be read."""
    root = checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent
    listed = checksums.listed(root)
    digests, sampled = {}, False
    for file in _files(checkpoint):
        known = listed.get(file.relative_to(root).as_posix()) if file.is_relative_to(root) else None
        digests[_place(checkpoint, file)] = known or file_hash(file)
        sampled |= known is None
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
    return f"{'sampled' if sampled else 'sha256'}:{hashlib.sha256(lines.encode()).hexdigest()}"


def file_hash(file: Path) -> str:
    """SHA-256 of the size and the sampled blocks of one file, in hexadecimal; of the whole content of a file
    that is not larger than the blocks together."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with file.open("rb") as content:
        if size <= BLOCKS * BLOCK_BYTES:
            digest.update(content.read())
        else:
            for block in range(BLOCKS):
                content.seek((size - BLOCK_BYTES) * block // (BLOCKS - 1))
                digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()


def file_states(files: Iterable[Path]) -> str:
    """A digest of place, size and time of change of these files: it also differs after a change that
    sampling may miss. Not comparable between hosts."""
    states = [(str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in sorted(files)]
    return hashlib.sha256(repr(states).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Weights:
    """Loaded weights: the hash of the checkpoint, and those of the files `added` to it by label. `states` is
    a digest of the states of all files."""

    checkpoint: str
    added: Mapping[str, str]
    states: str

    @property
    def content(self) -> str:
        """A digest of the content. Equal on all hosts, wherever the files lie."""
        return hashlib.sha256(repr([self.checkpoint, dict(self.added)]).encode()).hexdigest()

    @property
    def name(self) -> str:
        """A name for exactly these weights, valid on this host."""
        return f"{self.content} {self.states}"


NO_WEIGHTS = Weights("", {}, "")


def loaded_weights(checkpoint: Checkpoint, added: Mapping[str, Path | Checkpoint] | None = None) -> Weights:
    """The weights that are loaded from a checkpoint and from `added` files, folders or checkpoints, each with
    the label under which it is used."""
    added = added or {}
    checkpoints = {
        label: Checkpoint(one, "folder" if one.is_dir() else "single file") if isinstance(one, Path) else one
        for label, one in added.items()
    }
    files = [file for one in (checkpoint, *checkpoints.values()) for file in _files(one)]
    hashes = {label: checkpoint_hash(one) for label, one in checkpoints.items()}
    return Weights(checkpoint_hash(checkpoint), hashes, file_states(files))


def _files(checkpoint: Checkpoint) -> Iterator[Path]:
    """The files of a checkpoint, without hidden ones, the list of checksums and the manifest of a pull."""
    for folder in (checkpoint.path, checkpoint.config, checkpoint.vae):
        if folder is not None and folder.is_file():
            yield folder
        elif folder is not None:
            for file in folder.rglob("*"):
                hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
                if file.is_file() and not hidden and file.name not in _LISTS:
                    yield file


def _place(checkpoint: Checkpoint, file: Path) -> str:
    """The name of a file inside its checkpoint: it does not depend on where the checkpoint is stored."""
    if file == checkpoint.path:
        return file.name
    if file == checkpoint.vae:
        return f"vae/{file.name}"
    for prefix, folder in (("", checkpoint.path), ("config/", checkpoint.config), ("vae/", checkpoint.vae)):
        if folder is not None and file.is_relative_to(folder):
            return prefix + file.relative_to(folder).as_posix()
    return file.name
