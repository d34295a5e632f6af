"""Identifies weights by the content of their files, so that results computed with others are not mistaken
for theirs.

The digests of `SHA256SUMS` are used where a checkpoint has them. Reading tens of gigabytes at every start
would take longer than loading them, so other files are sampled: their size and 16 blocks of 64 KiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ourvidz.pipelines import checksums
from ourvidz.pipelines.checkpoints import Checkpoint

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


def loaded_weights(checkpoint: Checkpoint, extra: Iterable[tuple[str, Path]] = ()) -> str:
    """A name for the weights that are loaded from a checkpoint and from `extra` files, each with the label
    under which it is used. It is valid on this host."""
    extra = list(extra)
    states = file_states([*_files(checkpoint), *(path for _, path in extra)])
    labels = [f"{label}={file_hash(path)}" for label, path in extra]
    return " ".join([checkpoint_hash(checkpoint), states, *labels])


def content_hash(checkpoints: Iterable[Checkpoint], extra: Iterable[Path] = ()) -> str:
    """A digest of checkpoints and of further files and folders. Equal on all hosts, wherever they lie."""
    hashes = [checkpoint_hash(checkpoint) for checkpoint in checkpoints]
    for path in extra:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        hashes += [file_hash(file) for file in files if file.is_file()]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


def _files(checkpoint: Checkpoint) -> Iterator[Path]:
    """The files of a checkpoint, without hidden ones and the list of checksums."""
    folders = [checkpoint.path if checkpoint.path.is_dir() else None, checkpoint.config]
    if checkpoint.path.is_file():
        yield checkpoint.path
    for folder in folders:
        if folder is not None:
            for file in folder.rglob("*"):
                hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
                if file.is_file() and not hidden and file.name != checksums.CHECKSUMS:
                    yield file


def _place(checkpoint: Checkpoint, file: Path) -> str:
    """The name of a file inside its checkpoint: it does not depend on where the checkpoint is stored."""
    if file == checkpoint.path:
        return file.name
    for prefix, folder in (("", checkpoint.path), ("config/", checkpoint.config)):
        if folder is not None and file.is_relative_to(folder):
            return prefix + file.relative_to(folder).as_posix()
    return file.name
