"""The running attempt: its lease, its time limit, its cancel flag."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ourvidz import log
from ourvidz.errors import Cancelled, JobTimeout, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import Snapshot
from ourvidz.records.calls import ItemKind, Report
from ourvidz.records.record import NO_STAGE, PAUSES, PREEMPTED, WAITING_FOR_GPU, Claim, Verdict
from ourvidz.storage.store import Store
from ourvidz.workflows.checkpoints import JobCheckpoints
from ourvidz.workflows.previews import Previews
from ourvidz.workflows.staging import FenceLost, StagedFiles

__all__ = ["FenceLost", "LeasedRun"]

LEDGER_RETRY_DELAY_S = 0.5
"""Pause before the ledger is asked again whether this attempt may write."""
REPORT_INTERVAL_S = 0.25
"""Shortest time between two reports that contain progress alone. A cancellation is noticed at the first step
or write after it."""
PROGRESS_CALLBACK_INTERVAL_S = 1.0
"""Shortest time between two progress callbacks, where these are on."""
GENERATION_PROGRESS = 99.0
"""Progress (percent) when generation is complete; 100 comes with the commit."""

_log = log.get(__name__)


class LeasedRun:
    """One attempt; implements `Run`. As a context manager it renews the lease from a thread of its own.

    The time limit starts with the first step, so that loading a model does not count. Short steps do not all
    report to the ledger: one that does not leaves its progress to the next report, or to the commit. A ledger
    that is away for a while does not stop the work: the commit decides. `progress_events`: whether progress
    callbacks are recorded, one a second at most. `previews`: whether previews are rendered for followers.
    `checkpoints`: those of the job's denoising, if any are saved; the commit removes them.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        *,
        lease_s: float,
        limit_s: float,
        progress_events: bool = False,
        previews: bool = False,
        checkpoints: JobCheckpoints | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.checkpoints = checkpoints
        self._claim = claim
        self._ledger = ledger
        self._lease_s = lease_s
        self._limit_s = limit_s
        self._clock = clock
        self._sleep = sleep
        self._progress_events = progress_events
        self._next_progress_at = clock() + PROGRESS_CALLBACK_INTERVAL_S
        self._progress: float | None = None
        # The claim was the latest report.
        self._next_report_at = clock() + REPORT_INTERVAL_S
        self._must_ask = False
        """Whether the next write asks the ledger though no report is due."""
        self._committed = False
        self._committed_folders: list[str] = []
        self._previews = Previews(claim.job_id, clock=clock) if previews else None
        self._files = StagedFiles(claim, ledger, sleep=sleep)
        self._deadline: float | None = None
        self._paused_at: float | None = None
        self.fraction = 0.0
        """The share of the steps that are done."""
        self._stage: str | None = None
        self._lease_deadline = claim.lease_deadline
        self._fence_lost = threading.Event()
        self._closed = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self.checkpoints is not None:
            self.checkpoints.close(ended=self._committed)
        self._files.discard(self._committed_folders, committed=self._committed)
        if self._previews is not None:
            self._previews.close()

    @property
    def token(self) -> str:
        """The token of the claim: names what belongs to this attempt alone."""
        return self._claim.token

    @property
    def lease_deadline(self) -> float:
        """Until when the lease is known to last, in seconds of `time.monotonic`; later with every renewal.

        After it another worker may have the job: an attempt writes nothing that others read until the ledger
        has renewed it. Measured before the claim or renewal was sent, so never later than on the server.
        """
        return self._lease_deadline

    @property
    def enhancement_result(self) -> dict[str, Any] | None:
        """The document that `enhancement.enhance` returned for this job; None where none was recorded."""
        return self._claim.record.enhancement_result

    def step(self, done: int, total: int) -> None:
        """Report a finished step, unless the last report was less than `REPORT_INTERVAL_S` ago. Raises
        `Cancelled`, `JobTimeout` or `FenceLost`."""
        now = self._clock()
        self._end_pause(now)
        if self._deadline is None:
            self._deadline = now + self._limit_s
        if total:
            self.fraction = done / total
        add_event = self._progress_events and now >= self._next_progress_at and 0 < done < total
        reached = self._report(progress=_progress(done, total), add_event=add_event)
        if add_event and reached:
            self._next_progress_at = now + PROGRESS_CALLBACK_INTERVAL_S
        if now > self._deadline:
            raise self._timeout()

    def wait_for_device(self) -> None:
        """Report the stage `waiting_for_gpu`, until `end_wait` or the next step. Called again and again while
        the job waits for the memory of its GPU, which does not count towards its time limit. Raises
        `Cancelled` or `FenceLost`."""
        self._pause(WAITING_FOR_GPU)

    def end_wait(self) -> None:
        """Report that the job has the memory that it waited for: from now on it works. Raises `Cancelled` or
        `FenceLost`."""
        self._end_pause(self._clock())
        self._report()

    def note_preempted(self) -> None:
        """Report the stage `preempted`, until the next step: what comes before it does not count towards the
        time limit. Raises `Cancelled` or `FenceLost`."""
        self._pause(PREEMPTED)

    def text_report(self, text: str, tokens: int, max_tokens: int) -> Report:
        """The report of new text, which may be empty. The caller sends it; `note_report` and
        `after_text` follow."""
        self._progress = _progress(tokens, max_tokens)
        items: list[tuple[ItemKind, dict[str, Any]]] = []
        if text:
            items.append(("token", {"text": text, "tokens": tokens}))
        return Report(self._claim, self._progress, self._stage, items)

    def after_text(self, verdict: Verdict | None) -> bool:
        """Act on the ledger's answer to a report of text, None for no answer. Returns False when the text
        must be sent again. Raises what `step` raises."""
        reached = self._obey(verdict)
        if self._deadline is not None and self._clock() > self._deadline:
            raise self._timeout()
        return reached

    def exclude(self, seconds: float) -> None:
        """Do not count this time towards the time limit: another job of the same batch took it."""
        if self._deadline is not None:
            self._deadline += seconds

    def preview(self, snapshot: Snapshot) -> None:
        """Render a preview of the snapshot on another thread, at most twice a second. It is sent to followers
        with the next report to the ledger. Raises nothing."""
        if self._previews is not None:
            self._previews.offer(snapshot)

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        """Store one file, under a key of this attempt until `publish`. Nothing is written after the end of
        the lease before the ledger has renewed it, however long that takes. Raises what `step` raises, or
        `StorageError` after the last try."""
        self._files.put(store, key, data, content_type, check=self._check_lease)

    def publish(self, outcome: Outcome) -> None:
        """Move the files of the outcome's assets to their final keys, under the same rules as `put`, but for
        the ledger, which is always asked before the first: a job that was cancelled by now publishes nothing.
        What follows is the commit."""
        self._must_ask = True
        keys = [key for asset in outcome.assets for key in (asset.key, asset.thumbnail_key) if key]
        self._files.publish(keys, check=self._check_lease)

    def emptied_folders(self) -> list[str]:
        """The folders of this attempt in which nothing is left after `publish`: the commit names them."""
        return self._files.emptied()

    def note_commit(self, emptied_folders: list[str]) -> None:
        """Note that the outcome is committed, and that the ledger has forgotten these folders."""
        self._committed, self._committed_folders = True, emptied_folders

    def _pause(self, stage: str) -> None:
        if self._paused_at is None:
            self._paused_at = self._clock()
        if self._stage != stage:
            self._stage = stage
            self._progress = None
        self._next_report_at = self._clock()
        self._report()

    def _end_pause(self, now: float) -> None:
        if self._paused_at is not None and self._deadline is not None:
            self._deadline += now - self._paused_at
        self._paused_at = None
        if self._stage in PAUSES:
            self._stage = NO_STAGE
            self._next_report_at = now

    def _check_lease(self) -> None:
        """Return if this attempt may write. After the end of its lease, ask the ledger until it answers.
        Raises `Cancelled` or `FenceLost`."""
        self._report()
        while self._clock() >= self._lease_deadline:
            sent_at = self._clock()
            try:
                if not self._ledger.renew(self._claim, lease_s=self._lease_s):
                    self._fence_lost.set()
                self._lease_deadline = sent_at + self._lease_s
            except WorkerUnavailable:
                _log.warning("write_postponed", job_id=self._claim.job_id)
                self._sleep(LEDGER_RETRY_DELAY_S)
            if self._fence_lost.is_set():
                raise FenceLost(self._claim.job_id)

    def _timeout(self) -> JobTimeout:
        return JobTimeout(f"the job took longer than its time limit of {self._limit_s:g} seconds")

    def _report(self, progress: float | None = None, *, add_event: bool = False) -> bool:
        """Send progress, previews and new folders to the ledger, if there is one of the last two or a report
        is due. One that must be made but is not due carries no progress, so that it writes nothing: the
        commit follows. Returns whether the ledger was reached. Raises `Cancelled` or `FenceLost` as the
        ledger answers."""
        if progress is not None:
            self._progress = progress
        items = self._previews.collect() if self._previews is not None else []
        folders = self._files.untracked()
        verdict = None
        if items or folders or add_event or self._clock() >= self._next_report_at:
            verdict = self._send(
                Report(self._claim, self._progress, self._stage, items, add_event=add_event, folders=folders)
            )
        elif self._must_ask:
            verdict = self._send(Report(self._claim, stage=self._stage))
        return self._obey(verdict)

    def _send(self, report: Report) -> Verdict | None:
        """Send one report to the ledger. Returns its verdict, None when it was not reached."""
        verdict = None
        try:
            verdict = self._ledger.step(
                report.claim,
                progress=report.progress,
                stage=report.stage,
                items=report.items,
                add_event=report.add_event,
                folders=report.folders,
            )
        except WorkerUnavailable:
            _log.warning("ledger_away", job_id=self._claim.job_id)
        self.note_report(report, verdict)
        return verdict

    def note_report(self, report: Report, verdict: Verdict | None) -> None:
        """Note that a report was sent, and what the ledger answered; None for nothing."""
        self._must_ask = False
        self._next_report_at = self._clock() + REPORT_INTERVAL_S
        if verdict is None:
            return
        if report.progress is not None:
            self._progress = None
        self._files.note_tracked(list(report.folders))
        self._stage = None if self._stage == NO_STAGE else self._stage

    def _obey(self, verdict: Verdict | None) -> bool:
        if verdict is Verdict.LOST or self._fence_lost.is_set():
            raise FenceLost(self._claim.job_id)
        if verdict is Verdict.CANCEL:
            raise Cancelled("the job was cancelled")
        return verdict is not None

    def _renew(self) -> None:
        """Renew the lease until the run is closed or its fence is lost. Runs in a thread."""
        while not self._closed.wait(self._lease_s / 3):
            sent_at = self._clock()
            try:
                if not self._ledger.renew(self._claim, lease_s=self._lease_s):
                    self._fence_lost.set()
                    return
                self._lease_deadline = sent_at + self._lease_s
            except WorkerUnavailable:
                _log.warning("lease_not_renewed", job_id=self._claim.job_id)
            except Exception:  # noqa: BLE001  a thread that ends here would give a healthy attempt away
                _log.exception("lease_not_renewed", job_id=self._claim.job_id)


def _progress(done: int, total: int) -> float | None:
    """Progress of the job in percent while it generates; None where the total is unknown."""
    return GENERATION_PROGRESS * done / total if total else None
