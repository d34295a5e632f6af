"""The running attempt: its lease, its deadline, its cancel flag."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

from ourvidz import log
from ourvidz.errors import Cancelled, JobTimeout, StorageError, WorkerUnavailable
from ourvidz.ledger.record import Claim, Verdict
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import PreviewRenderer
from ourvidz.storage.store import Store
from ourvidz.workflows.previews import Previews

PUT_PAUSE_S = 0.5
"""Before the second try of a put; four times longer before each further one."""
TELL_EVERY_S = 1.0
"""The caller hears of progress at most this often, where progress callbacks are on."""
RUNNING_SHARE = 99.0
"""Progress while the pictures are not stored yet; 100 comes with the commit."""

_log = log.get(__name__)


class FenceLost(Exception):
    """Somebody else has this job now: whatever this attempt still does must change nothing."""


class LeasedRun:
    """One attempt. As a context manager it keeps the lease alive from a thread of its own.

    The deadline starts with the first step, so that loading a model does not count. A ledger that is
    away for a while does not stop the work: the commit decides. `on_told` is called after a progress
    callback was written down; without it none is. `previews`: whether followers see unfinished pictures.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        *,
        lease_s: float,
        limit_s: float,
        on_told: Callable[[], None] | None = None,
        previews: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._claim = claim
        self._ledger = ledger
        self._lease_s = lease_s
        self._limit_s = limit_s
        self._clock = clock
        self._sleep = sleep
        self._on_told = on_told
        self._tell_at = clock() + TELL_EVERY_S
        self._previews = Previews(claim.job_id, clock=clock) if previews else None
        self._deadline: float | None = None
        self._lost = threading.Event()
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._previews is not None:
            self._previews.close()

    @property
    def wording(self) -> dict[str, Any] | None:
        """What was found for the job's prompt before this attempt began."""
        return self._claim.record.enhancement_result

    def step(self, done: int, total: int) -> None:
        """Report a finished step. Raises `Cancelled`, `JobTimeout` or `FenceLost`."""
        now = self._clock()
        if self._deadline is None:
            self._deadline = now + self._limit_s
        telling = self._on_told is not None and now >= self._tell_at and 0 < done < total
        heard = self._hear(progress=RUNNING_SHARE * done / total if total else None, tell=telling)
        if telling and heard and self._on_told is not None:
            self._tell_at = now + TELL_EVERY_S
            self._on_told()
        if now > self._deadline:
            raise self._late()

    def say(self, text: str, done: int, total: int) -> bool:
        """Stream a piece of text, which may be empty, and report progress. False when the ledger is away:
        say it again. Raises what `step` raises."""
        now = self._clock()
        progress = RUNNING_SHARE * done / total if total else None
        heard = self._hear(progress=progress, text=text, tokens=done)
        if self._deadline is not None and now > self._deadline:
            raise self._late()
        return heard

    def preview(self, take: Callable[[], PreviewRenderer]) -> None:
        """Have what `take` copies drawn on a thread of its own, at most twice a second; followers of the job
        get it with the next word to the ledger. Raises nothing: a job does not fail for it."""
        if self._previews is not None:
            self._previews.offer(take)

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        """Store one file. The fence is checked before every try; raises what `step` raises, or
        `StorageError` after the last try."""
        for attempt in range(1, StorageError.attempts + 1):
            self._hear()
            try:
                store.put(key, data, content_type=content_type)
                return
            except StorageError as error:
                if attempt == StorageError.attempts:
                    raise
                _log.warning("put_failed", job_id=self._claim.job_id, error=error.message)
                self._sleep(PUT_PAUSE_S * 4 ** (attempt - 1))

    def _late(self) -> JobTimeout:
        return JobTimeout(f"the job took longer than its time limit of {self._limit_s:g} seconds")

    def _hear(
        self, progress: float | None = None, *, tell: bool = False, text: str = "", tokens: int = 0
    ) -> bool:
        """Whether the ledger has heard; raises what it says."""
        verdict = None
        items: list[tuple[Literal["preview", "token"], dict[str, Any]]] = []
        if self._previews is not None:
            items += self._previews.drawn()
        if text:
            items.append(("token", {"text": text, "tokens": tokens}))
        try:
            verdict = self._ledger.step(self._claim, progress=progress, items=items, add_event=tell)
        except WorkerUnavailable:
            _log.warning("ledger_away", job_id=self._claim.job_id)
        if verdict is Verdict.LOST or self._lost.is_set():
            raise FenceLost(self._claim.job_id)
        if verdict is Verdict.CANCEL:
            raise Cancelled("the job was cancelled")
        return verdict is not None

    def _renew(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            try:
                if not self._ledger.renew(self._claim, lease_s=self._lease_s):
                    self._lost.set()
                    return
            except WorkerUnavailable:
                _log.warning("lease_not_renewed", job_id=self._claim.job_id)
            except Exception:  # noqa: BLE001  a thread that ends here would give a healthy attempt away
                _log.exception("lease_not_renewed", job_id=self._claim.job_id)
