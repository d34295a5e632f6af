"""Reports each job that this process has ended: two log lines, two documents, and a count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ourvidz import log
from ourvidz.jobs.outcome import Outcome
from ourvidz.records.record import Claim
from ourvidz.telemetry import documents
from ourvidz.telemetry.reporter import MetricsReporter

_log = log.get(__name__)


class EndedJobs:
    """The jobs that this process has ended, since it started. Safe to share between threads.

    `reporter` gets the documents; None where no receiver is configured.
    """

    def __init__(self, reporter: MetricsReporter | None, *, clock: Callable[[], float] = time.time) -> None:
        self._reporter = reporter
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = {"completed": 0, "failed": 0}

    def report(self, claim: Claim, outcome: Outcome) -> None:
        """Report the end of a job that has just been committed. Returns at once and raises nothing."""
        try:
            at = self._clock()
            with self._lock:
                self._counts["completed" if outcome.status == "completed" else "failed"] += 1
            metrics = documents.worker_metrics(claim, outcome, at=at)
            stats = documents.completion_stats(claim, outcome, at=at)
            _log.info("worker_metrics", **metrics)
            if stats is not None:
                _log.info("completion_stats", **stats)
            if self._reporter is not None:
                self._reporter.add("worker_metrics", metrics)
                if stats is not None:
                    self._reporter.add("completion_stats", stats)
        except Exception:  # noqa: BLE001  a report must not change how a job has ended
            _log.exception("job_not_reported", job_id=claim.job_id)

    def counts(self) -> dict[str, int]:
        """How many jobs were `completed`, and how many `failed` or were cancelled."""
        with self._lock:
            return dict(self._counts)
