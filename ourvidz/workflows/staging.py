"""Files of a running attempt: stored under keys of its own, moved to their final keys before the commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ourvidz import log
from ourvidz.errors import NotFound, OurvidzError, StorageError
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim
from ourvidz.storage.keys import asset_folder, attempt_folder, attempts_folder, fence_of
from ourvidz.storage.store import Store

PUBLISHERS = 4
"""Files of one job that are published at a time."""
PUT_BACKOFF_S = 0.5
"""Pause before the second try of a write; four times longer before each further one."""
MAX_DELETIONS = 1000
"""How many deletions that have begun are looked through for a job."""

_log = log.get(__name__)


class FenceLost(Exception):
    """Another worker has this job, or it has ended: this attempt must change nothing any more."""


class StagedFiles:
    """The files that one attempt has stored and not yet published. Threads may share it.

    `check` is called before every write and raises if the attempt must not write (any more); it reports what
    `untracked` returns to the ledger, and calls `note_tracked`. It is passed to each call: kept here, the
    method of the run that owns these files would make a cycle, and every ended run with its job would wait
    for the garbage collector.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._claim = claim
        self._ledger = ledger
        self._sleep = sleep
        self._lock = threading.Lock()
        self._staged: dict[str, Store] = {}
        """The store of each final key that has a staged file."""
        self._folders: dict[str, Store] = {}
        """The final folders of this attempt's files."""
        self._claimed_folder = _claimed_folder(claim)
        """The final folder whose own folder the claim has noted in the ledger."""
        self._untracked: set[str] = set()
        """The folders whose own folder is not in the ledger yet."""
        self._published: dict[str, Store] = {}
        """The store of each final key to which a move was begun."""
        self._has_remains = False
        """Whether a write failed: it may have left something."""

    def put(
        self, store: Store, key: str, data: bytes, content_type: str, *, check: Callable[[], None]
    ) -> None:
        """Store the file that `publish` will move to `key`. Raises what `check` raises, or `StorageError`
        after the last try."""
        write = partial(store.put, self._staged_key(key), data, content_type=content_type)
        self._stage(store, key, write, check)

    def copy(self, store: Store, source: str, key: str, *, check: Callable[[], None]) -> None:
        """Copy the file `source`, which `publish` will move to `key`. Raises as `put` does, and `NotFound`
        if there is none."""
        self._stage(store, key, partial(store.copy, source, self._staged_key(key)), check)

    def _stage(self, store: Store, key: str, write: Callable[[], None], check: Callable[[], None]) -> None:
        folder = key.rpartition("/")[0]
        with self._lock:
            if folder not in self._folders:
                self._folders[folder] = store
                if folder != self._claimed_folder:
                    self._untracked.add(folder)
        try:
            self._with_retries(check, lambda _again: write())
        except BaseException:
            self._has_remains = True
            raise
        self._staged[key] = store

    def publish(self, keys: Iterable[str], *, check: Callable[[], None]) -> None:
        """Move the files of these final keys to them, and remove what earlier attempts have left.

        An earlier attempt that froze while it published finds its files gone and cannot go on. Raises what
        `check` raises, `FenceLost` if a file is gone, `StorageError` after the last try.
        """
        staged = {key: self._staged[key] for key in keys if key in self._staged}
        for folder, store in self._folders.items():
            self._with_retries(check, partial(self._remove_earlier, store, folder))
        # Where a move is several requests, a job with many files would keep its worker waiting for a second.
        with ThreadPoolExecutor(PUBLISHERS, thread_name_prefix=f"publish-{self._claim.job_id}") as pool:
            moves = [pool.submit(self._publish, store, key, check) for key, store in staged.items()]
            try:
                # Popped: an error must not refer to the list that refers to it.
                while moves:
                    moves.pop().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _publish(self, store: Store, key: str, check: Callable[[], None]) -> None:
        self._published[key] = store
        self._with_retries(check, partial(self._move, store, key))
        del self._staged[key]

    def untracked(self) -> list[str]:
        """The folders of this attempt that the next report to the ledger has to name: if the worker dies, a
        keeper removes them."""
        with self._lock:
            return [self._own(folder) for folder in sorted(self._untracked)]

    def note_tracked(self, own_folders: Iterable[str]) -> None:
        """Note that the ledger knows these folders."""
        noted = set(own_folders)
        with self._lock:
            self._untracked = {folder for folder in self._untracked if self._own(folder) not in noted}

    def emptied(self) -> list[str]:
        """The folders of this attempt that the ledger knows and in which no file is left; none after a failed
        write."""
        if self._staged or self._has_remains:
            return []
        return [self._own(folder) for folder in {*self._folders, self._claimed_folder} if folder]

    def discard(self, untracked: Iterable[str] = (), *, committed: bool = True) -> None:
        """Remove the files that were not published. A failure is logged: the keeper removes them later.
        `untracked`: own folders that the ledger has forgotten already. Of an attempt that was not
        `committed`, files are also removed that it has published after the deletion of its job."""
        for folder, store in self._folders.items():
            own = self._own(folder)
            try:
                store.delete_folder(own)
                if own not in untracked:
                    self._ledger.untrack_attempt_folder(self._claim.job_id, self._claim.token, own)
            except OurvidzError as error:
                _log.warning("staged_files_left", job_id=self._claim.job_id, error=error.message)
        if self._published and not committed:
            self._withdraw()

    def _withdraw(self) -> None:
        """Remove what this attempt has published, if its job is deleted. While the job exists, another
        attempt may have published the same keys."""
        try:
            if self._is_job_deleted():
                for key, store in self._published.items():
                    store.delete(key)
        except OurvidzError as error:
            _log.warning("published_files_left", job_id=self._claim.job_id, error=error.message)

    def _is_job_deleted(self) -> bool:
        job_id = self._claim.job_id
        if not self._ledger.exists(job_id):
            return True
        return job_id in self._ledger.deletions(older_than_s=0.0, limit=MAX_DELETIONS)

    def _staged_key(self, key: str) -> str:
        folder, _, name = key.rpartition("/")
        return f"{self._own(folder)}/{name}"

    def _own(self, folder: str) -> str:
        return attempt_folder(folder, self._claim.fence, self._claim.token)

    def _remove_earlier(self, store: Store, folder: str, again: bool = False) -> None:  # noqa: ARG002
        """Remove the files of attempts with a lower fence, and of one with the same fence: a failover of the
        server has lost that claim. Those with a higher one are the present ones."""
        own = self._own(folder)
        for name in store.folders(attempts_folder(folder)):
            other = f"{attempts_folder(folder)}/{name}"
            if fence_of(name) <= self._claim.fence and other != own:
                store.delete_folder(other)

    def _move(self, store: Store, key: str, again: bool) -> None:
        try:
            store.move(self._staged_key(key), key)
        except NotFound:
            # A later attempt or a deletion has removed it, unless a try whose answer was lost has moved it.
            if not (again and store.exists(key)):
                raise FenceLost(self._claim.job_id) from None

    def _with_retries(self, check: Callable[[], None], write: Callable[[bool], None]) -> None:
        """Call `write` until it succeeds, at most three times. It gets whether it was called before."""
        for attempt in range(1, StorageError.attempts + 1):
            check()
            try:
                return write(attempt > 1)
            except StorageError as error:
                if attempt == StorageError.attempts:
                    raise
                _log.warning("put_failed", job_id=self._claim.job_id, error=error.message)
                self._sleep(PUT_BACKOFF_S * 4 ** (attempt - 1))


def _claimed_folder(claim: Claim) -> str | None:
    """The final folder of the job's files; None for a text, or where an earlier release made the record."""
    record = claim.record
    if record.bucket is None or record.user_id is None:
        return None
    return asset_folder(record.bucket, record.user_id, record.job_id)
