"""The life of a job, written to Redis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ourvidz.jobs.job import Job, dump_job, load_job
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.codec import dump_json, dump_outcome, generation_ms, load_record, pairs, unsigned_assets
from ourvidz.ledger.limits import STREAM_KEPT_S, Limits
from ourvidz.ledger.record import Admission, Claim, Record, Verdict, is_one_shot, wants_enhancement
from ourvidz.ledger.redis_link import Link, call_token
from ourvidz.ledger.refusals import refusal


class RedisJobs:
    """The verbs that change a job."""

    _link: Link
    _limits: Limits

    # -- the door
    def register(self, job: Job, *, priority: int, quiet: bool = False) -> Admission:
        created, fields = self._link.call(
            "register",
            job.id,
            job.type,
            job.queue,
            job.user_id,
            priority,
            job.fingerprint(),
            job.callback_url,
            dump_json(job.facts()),
            dump_job(job),
            call_token(),
            "1" if quiet else None,
            "1" if is_one_shot(job) else None,
            "wanted" if wants_enhancement(job) else None,
        )
        record = load_record(job.id, pairs(fields))
        return Admission(
            created=bool(created), same=job.repeats(record.fingerprint, record.facts), record=record
        )

    def reopen(self, job_id: str, *, priority: int) -> Record:
        return _granted(job_id, "reopened", self._link.call("reopen", job_id, priority, call_token()))

    def published(self, job_id: str, run: int) -> None:
        self._link.call("published", job_id, run, call_token())

    # -- a run
    def claim(self, job_id: str, run: int, *, worker_id: str, lease_s: float, token: str) -> Claim | None:
        won = self._link.call("claim", job_id, run, worker_id, lease_s, token)
        if won is None:
            return None
        fields, document = won
        return Claim(job=load_job(document), record=load_record(job_id, pairs(fields)))

    def step(
        self,
        claim: Claim,
        *,
        progress: float | None = None,
        stage: str | None = None,
        items: Iterable[tuple[Literal["progress", "preview", "token"], dict[str, Any]]] = (),
        tell: bool = False,
    ) -> Verdict:
        told = [part for kind, data in items for part in (kind, dump_json(data))]
        at = None if progress is None else repr(min(max(float(progress), 0.0), 100.0))
        known = (claim.job_id, claim.run, claim.fence, at, stage, call_token(), "1" if tell else None)
        return Verdict(self._link.call("step", *known, *told, quick=True))

    def renew(self, claim: Claim, *, lease_s: float) -> bool:
        return bool(self._link.call("renew", claim.job_id, claim.run, claim.fence, lease_s))

    def release(self, claim: Claim, *, code: str, due_in_s: float) -> bool:
        return bool(
            self._link.call("release", claim.job_id, claim.run, claim.fence, code, due_in_s, call_token())
        )

    def end(
        self, job_id: str, *, run: int, fence: int, outcome: Outcome, worker_id: str | None = None
    ) -> bool:
        committed = self._link.call(
            "end",
            job_id,
            run,
            fence,
            outcome.status,
            dump_outcome(outcome),
            dump_json(outcome.error.to_public()) if outcome.error else None,
            worker_id,
            generation_ms(outcome),
            self._limits.document_limit,
            int(self._limits.retry_window_s),
            self._limits.keep_s,
            int(STREAM_KEPT_S),
            unsigned_assets(outcome),
        )
        return bool(committed)

    def lose(self, job_id: str, *, fence: int, counted: bool = True) -> bool:
        return bool(self._link.call("lose", job_id, fence, int(counted), call_token()))

    def lift(self, job_id: str, *, run: int, priority: int) -> bool:
        return bool(self._link.call("lift", job_id, run, priority, call_token()))

    def request_cancel(self, job_id: str) -> Record:
        return _granted(job_id, "cancelled", self._link.call("cancel", job_id))

    def delete(self, job_id: str) -> Record:
        return _granted(job_id, "deleted", self._link.call("delete", job_id, call_token()))


def _granted(job_id: str, wish: str, answer: list[Any]) -> Record:
    if answer[0] == "ok":
        return load_record(job_id, pairs(answer[1]))
    raise refusal(job_id, wish, answer[0])
