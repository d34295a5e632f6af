"""The enhancement of a queued job's prompt, under a lease of its own."""

from __future__ import annotations

from typing import Any

from ourvidz.jobs.job import JOB_VERSION, load_job
from ourvidz.ledger.base import LedgerBase
from ourvidz.records.codec import dump_json, load_record, pairs
from ourvidz.records.record import Enhancement, Verdict


class EnhancementOperations(LedgerBase):
    """Verbs of the chat worker that enhances the prompt of a job of another worker."""

    def begin_enhancement(self, job_id: str, run: int, *, lease_s: float, token: str) -> Enhancement | None:
        """Lease the enhancement of a job: stage `enhancing`, the job stays queued.

        None when the job does not await an enhancement in this run, is to be cancelled, its document is of a
        newer release, or the lease of another token is alive. The same `token` sent twice gets the same
        lease.
        """
        answer = self._connection.run_script("begin_enhancement", job_id, run, lease_s, token, JOB_VERSION)
        if answer is None:
            return None
        fields, document = answer
        return Enhancement(load_job(document), load_record(job_id, pairs(fields)), token)

    def renew_enhancement(self, enhancement: Enhancement, *, lease_s: float) -> Verdict:
        """Extend the lease to now + lease_s. Returns whether to go on, to stop because the caller cancelled,
        or to stop because the lease is lost or the enhancement no longer awaited."""
        lease = (enhancement.job_id, enhancement.run, enhancement.token)
        return Verdict(self._connection.run_script("renew_enhancement", *lease, lease_s, quick=True))

    def end_enhancement(self, enhancement: Enhancement, *, result: dict[str, Any]) -> bool:
        """Store the result in the record and clear the stage. The same result sent twice returns True twice.
        False when the lease is lost or the enhancement no longer awaited."""
        lease = (enhancement.job_id, enhancement.run, enhancement.token)
        return bool(self._connection.run_script("end_enhancement", *lease, dump_json(result)))

    def skip_enhancement(self, job_id: str, *, run: int, reason: str) -> bool:
        """Let a job go on without an enhancement: its result is `{"reason": reason}`, a sentence for the
        caller. False when the job does not await one in this run (any more)."""
        return bool(
            self._connection.run_script("skip_enhancement", job_id, run, dump_json({"reason": reason}))
        )
