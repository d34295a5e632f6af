"""One log that this process appends to: its lock, its segments, its tree and its checkpoints."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ourvidz import log
from ourvidz.auditing.checkpoints import Checkpoint, parse_note
from ourvidz.auditing.merkle import Frontier, leaf_hash
from ourvidz.auditing.segments import (
    create_segment,
    entry_line,
    header,
    parse_header,
    segments_in,
    write_file,
)
from ourvidz.auditing.signing import SigningKey
from ourvidz.auditing.uploads import PENDING, CheckpointStore, CheckpointUploader, checkpoint_keys
from ourvidz.auditing.verification import CRASH, LOG_OPENED, SEGMENTS_DROPPED
from ourvidz.errors import OurvidzError

LATEST = "checkpoint"
"""The file of a log with its newest checkpoint."""
LOCK = "lock"
LOG_CLOSED = "log_closed"
_log = log.get(__name__)


class Damaged(Exception):
    """A log is not what a checkpoint says, so nothing may be appended to it."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """When a log is rotated and dropped (bytes), and checkpointed (entries)."""

    segment_bytes: int = 16 << 20
    max_bytes: int = 1 << 30
    checkpoint_entries: int = 1000


class LogFile:
    """An open log. `append` writes without fsync; nothing is signed before `sync`. All raise `OSError`."""

    def __init__(
        self, folder: Path, key: SigningKey, store: CheckpointStore, options: LogOptions, lock: int
    ) -> None:
        self._folder, self._key, self._options, self._lock = folder, key, options, lock
        self._file, self._length = -1, 0
        try:
            self._resume(store)
            self.uploader = CheckpointUploader(folder, folder.name, store)
        except BaseException:
            self._release()
            raise

    @property
    def id(self) -> str:
        """The id of the log: the host that made it, and random letters."""
        return self._folder.name

    @property
    def due(self) -> bool:
        """Whether so many entries have no checkpoint that one is due."""
        return len(self._leaves) >= self._options.checkpoint_entries

    @property
    def unsigned(self) -> int:
        """How many entries have no checkpoint."""
        return len(self._leaves)

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append entries: all, or none where `OSError` is raised."""
        lines = [entry_line(number, entry) for number, entry in enumerate(entries, start=self._tree.size)]
        data = b"".join(line + b"\n" for line in lines)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._length)
            raise
        self._length += len(data)
        for line in lines:
            self._add(leaf_hash(line))

    def sync(self) -> None:
        """Make what was appended durable; sign it where that is due, and start a new segment."""
        os.fsync(self._file)
        if self._length >= self._options.segment_bytes:
            self.checkpoint()
            self._rotate()
        elif self.due:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Sign what was synced."""
        if not self._leaves:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        leaves = tuple(self._leaves)
        size = self._tree.size
        checkpoint = Checkpoint(self.id, size, self._tree.root(), now, size - len(leaves), leaves)
        note = checkpoint.sign(self._key)
        self.uploader.add(checkpoint.name, note)
        write_file(self._folder / LATEST, note)
        self._leaves.clear()

    def close(self) -> None:
        """Append that the log was closed, sign it, and release the log."""
        try:
            self.append([{"at": now_text(), "event": LOG_CLOSED}])
            os.fsync(self._file)
            self.checkpoint()
        finally:
            self.uploader.close()
            self._release()

    def _add(self, leaf: bytes) -> None:
        self._tree.append(leaf)
        self._leaves.append(leaf)

    def _release(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _open(self, path: Path) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._length = os.fstat(self._file).st_size

    def _resume(self, store: CheckpointStore) -> None:
        """Read the last segment, and compare it with the newest checkpoints. Raises `Damaged`."""
        segments = segments_in(self._folder)
        self._leaves: list[bytes] = []
        if not segments:
            if (self._folder / LATEST).exists():
                raise Damaged("its segments are gone")
            self._tree = Frontier()
            self._open(create_segment(self._folder, self.id, self._tree))
            self.append([{"at": now_text(), "event": LOG_OPENED, "pid": os.getpid(), "after": "creation"}])
            return
        first_line, *lines = segments[-1].read_bytes().split(b"\n")
        try:
            self._tree = parse_header(first_line)
        except ValueError as error:
            raise Damaged(str(error)) from None
        if first_line != header(self.id, self._tree) or not lines:
            raise Damaged("the header of its last segment is wrong")
        incomplete = lines.pop()
        checkpoints = list(self._newest_checkpoints(store))
        signed = max((checkpoint.size for checkpoint in checkpoints), default=0)
        # What an older checkpoint has signed is repeated by the next one, never what it has not.
        self._read_lines(lines, checkpoints, signed)
        self._open(segments[-1])
        if incomplete:
            self._length -= len(incomplete)
            os.ftruncate(self._file, self._length)
        after = "close" if lines and f'"event":"{LOG_CLOSED}"'.encode() in lines[-1] else CRASH
        self.append([{"at": now_text(), "event": LOG_OPENED, "pid": os.getpid(), "after": after}])

    def _read_lines(self, lines: Sequence[bytes], checkpoints: Sequence[Checkpoint], signed: int) -> None:
        roots = {checkpoint.size: checkpoint.root for checkpoint in checkpoints}
        if signed < self._tree.size and checkpoints:
            raise Damaged("its checkpoints are older than its last segment")
        for line in (None, *lines):
            if line is not None:
                leaf = leaf_hash(line)
                self._tree.append(leaf)
                if self._tree.size > signed:
                    self._leaves.append(leaf)
            if roots.get(self._tree.size, root := self._tree.root()) != root:
                raise Damaged(f"its first {self._tree.size} entries are not those that were signed")
        if signed > self._tree.size:
            raise Damaged(f"{signed} entries were signed, and {self._tree.size} are left")

    def _newest_checkpoints(self, store: CheckpointStore) -> Iterator[Checkpoint]:
        """The newest checkpoint of this host, and that in the storage, which may not answer now."""
        notes = [path.read_bytes() for path in (self._folder / LATEST,) if path.exists()]
        notes += [path.read_bytes() for path in sorted((self._folder / PENDING).glob("[0-9]*"))]
        try:
            keys = checkpoint_keys(store, self.id)
            notes += [store.get(key) for key in keys[-1:]]
        except OurvidzError as error:
            _log.warning("audit_storage_silent", log=self.id, reason=str(error))
        for note in notes:
            try:
                parsed = parse_note(note)
            except ValueError:
                continue
            if parsed.check([self._key]) is not False and parsed.checkpoint.log == self.id:
                yield parsed.checkpoint

    def _rotate(self) -> None:
        """Start a new segment; drop the oldest ones beyond the limit, after an entry says so."""
        self._open(create_segment(self._folder, self.id, self._tree))
        segments = segments_in(self._folder)
        sizes = [path.stat().st_size for path in segments]
        dropped = 0
        while dropped < len(segments) - 1 and sum(sizes[dropped:]) > self._options.max_bytes:
            dropped += 1
        if not dropped:
            return
        before = int(segments[dropped].stem)
        self.append([{"at": now_text(), "event": SEGMENTS_DROPPED, "before": before}])
        os.fsync(self._file)
        self.checkpoint()
        for path in segments[:dropped]:
            path.unlink()
        self.uploader.forget_before(before)

    @classmethod
    def open(
        cls, root: Path, host: str, key: SigningKey, store: CheckpointStore, options: LogOptions
    ) -> Self:
        """Open a log below `root` that no other process has open and that is whole; else make one."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in sorted(path for path in root.iterdir() if (path / LOCK).is_file()):
            lock = _try_lock(folder)
            if lock is None:
                continue
            try:
                return cls(folder, key, store, options, lock)
            except Damaged as error:
                _log.error("audit_log_damaged", log=folder.name, reason=str(error))
        while True:
            folder = root / f"{host_part(host)}.{secrets.token_hex(4)}"
            folder.mkdir(mode=0o700)
            os.close(os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o600))
            lock = _try_lock(folder)
            if lock is not None:
                return cls(folder, key, store, options, lock)


def host_part(host: str) -> str:
    """What the ids of a host's logs begin with, before a dot."""
    return re.sub("[^A-Za-z0-9-]", "-", host)[:60]


def now_text() -> str:
    """The time of an entry."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


def _try_lock(folder: Path) -> int | None:
    """Lock a log; None if another process has it. The descriptor holds the lock."""
    descriptor = os.open(folder / LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
