"""Checkpoints of a job's denoising in storage, in a private bucket that no route serves.

Each attempt has a folder of its own, named by its fence like that of its files, with one checkpoint, the
newest. So an attempt that lost its job cannot replace the checkpoint of the present one, and the next attempt
on any host finds the newest first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ourvidz import log
from ourvidz.errors import NotFound, OurvidzError, StorageError
from ourvidz.pipelines.base import Preempted
from ourvidz.records.record import Claim
from ourvidz.storage.keys import checkpoint_key, checkpoints_folder, fence_of
from ourvidz.storage.store import Store

CONTENT_TYPE = "application/octet-stream"

_log = log.get(__name__)


class JobCheckpoints:
    """The checkpoints of one job, for one attempt; implements `DenoisingCheckpoints`.

    One is due `interval_s` seconds after the last one, or a step earlier where a step takes long: two of them
    are at most that far apart. While the worker drains one is due after every step, because the job may be
    handed back at any time. None is due while one is being written.

    `is_preempted` is asked after every step: whether the job yields to another one now. Then a
    checkpoint is due, and `save` raises `Preempted` once it is stored.
    """

    def __init__(
        self,
        claim: Claim,
        store: Store,
        *,
        interval_s: float,
        is_draining: Callable[[], bool] = lambda: False,
        is_preempted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim = claim
        self._store = store
        self._interval_s = interval_s
        self._is_draining = is_draining
        self._is_preempted = is_preempted
        self._preempted = False
        self._clock = clock
        self._saved_at = self._stepped_at = clock()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[bool] | None = None
        self._has_saved = False

    def stored(self) -> Iterator[bytes]:
        """The checkpoints of earlier attempts, those of later claims first. One that cannot be read is left
        out. Denoising begins now."""
        self._saved_at = self._stepped_at = self._clock()
        for name in self._folders():
            try:
                yield self._store.get(checkpoint_key(self._claim.job_id, name))
            except NotFound:
                continue
            except StorageError as error:
                _log.warning("checkpoint_not_read", job_id=self._claim.job_id, reason=error.message)

    def is_due(self) -> bool:
        """Whether a checkpoint should be saved now, after a step."""
        now = self._clock()
        step_s, self._stepped_at = now - self._stepped_at, now
        if self._writing is not None and not self._writing.done():
            return False
        self._preempted = self._is_preempted()
        return self._preempted or now + step_s > self._saved_at + self._interval_s or self._is_draining()

    def save(self, encode: Callable[[], bytes]) -> None:
        """Encode and store a checkpoint on a thread of its own. A failure is logged. Raises `Preempted` when
        the job yields, unless the checkpoint could not be stored."""
        self._saved_at = self._clock()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"checkpoint-{self._claim.job_id}")
        self._writing = self._writer.submit(self._write, encode)
        if self._preempted and self._writing.result():
            raise Preempted

    def close(self, *, ended: bool) -> None:
        """Wait for the checkpoint that is being written; remove them all if the job has `ended`. Raises
        nothing: a keeper removes what is left."""
        if self._writer is not None:
            self._writer.shutdown()
        if ended:
            self._remove([checkpoints_folder(self._claim.job_id)])

    def _write(self, encode: Callable[[], bytes]) -> bool:
        """Store a checkpoint; return whether it is stored."""
        claim = self._claim
        own = f"{claim.fence}.{claim.token}"
        try:
            self._store.put(checkpoint_key(claim.job_id, own), encode(), content_type=CONTENT_TYPE)
        except Exception as error:  # noqa: BLE001  the job goes on without a checkpoint
            reason = error.message if isinstance(error, OurvidzError) else type(error).__name__
            _log.warning("checkpoint_not_saved", job_id=claim.job_id, reason=reason)
            return False
        if not self._has_saved:
            self._has_saved = True
            folder = checkpoints_folder(claim.job_id)
            self._remove([f"{folder}/{name}" for name in self._folders() if name != own])
        return True

    def _folders(self) -> list[str]:
        """The folders of this attempt and of those before it, the newest first."""
        try:
            names = self._store.folders(checkpoints_folder(self._claim.job_id))
        except StorageError as error:
            _log.warning("checkpoint_not_read", job_id=self._claim.job_id, reason=error.message)
            return []
        return sorted(
            (name for name in names if fence_of(name) <= self._claim.fence), key=fence_of, reverse=True
        )

    def _remove(self, folders: list[str]) -> None:
        try:
            for folder in folders:
                self._store.delete_folder(folder)
        except StorageError as error:
            _log.warning("checkpoint_left", job_id=self._claim.job_id, reason=error.message)
