"""The life of a job, kept in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from ourvidz.jobs.job import Job, dump_job, load_job
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.codec import dump_json, dump_outcome, generation_ms, load_outcome, unsigned_assets
from ourvidz.ledger.limits import STREAM_KEPT_S
from ourvidz.ledger.memory_state import Entry, MemoryState
from ourvidz.ledger.record import Admission, Claim, Record, Verdict, is_one_shot, wants_enhancement
from ourvidz.ledger.refusals import refusal


class MemoryJobs(MemoryState):
    """The verbs that change a job."""

    # -- the door
    def register(self, job: Job, *, priority: int, quiet: bool = False) -> Admission:
        with self._lock:
            entry = self._entries.get(job.id)
            created = entry is None
            if entry is None:
                entry = self._entries[job.id] = self._new_entry(job, priority, quiet)
                self._state_item(entry, 0)
            same = job.repeats(entry.record.fingerprint, entry.record.facts)
            return Admission(created, same, entry.record)

    def _new_entry(self, job: Job, priority: int, quiet: bool) -> Entry:
        now, order = self.now(), next(self._orders)
        record = Record(
            job_id=job.id,
            type=job.type,
            queue=job.queue,
            user_id=job.user_id or None,
            status="queued",
            run=1,
            attempt=0,
            fence=0,
            priority=priority,
            order=order,
            created_at=now,
            queued_at=now,
            due_at=now,
            claimed_at=None,
            finished_at=None,
            published_at=None,
            publishes=0,
            progress=0.0,
            stage=None,
            worker_id=None,
            lease_until=None,
            cancel_requested=False,
            fingerprint=job.fingerprint(),
            callback_url=job.callback_url or None,
            facts=json.loads(dump_json(job.facts())),
            failures={},
            outcome=None,
            quiet=quiet,
            one_shot=is_one_shot(job),
            enhancement="wanted" if wants_enhancement(job) else None,
        )
        return Entry(record, dump_job(job), place=order)

    def reopen(self, job_id: str, *, priority: int) -> Record:
        with self._lock:
            entry = self._find(job_id, "reopened", ("failed", "cancelled"))
            if entry.document is None:
                raise refusal(job_id, "reopened", "document")
            now = self.now()
            entry.oversized_until, entry.items_until, entry.lifted, entry.token = None, None, False, None
            record = self._change(
                entry,
                status="queued",
                run=entry.record.run + 1,
                attempt=0,
                priority=priority,
                order=next(self._orders),
                queued_at=now,
                due_at=now,
                claimed_at=None,
                finished_at=None,
                published_at=None,
                publishes=0,
                progress=0.0,
                stage=None,
                worker_id=None,
                cancel_requested=False,
                failures={},
                outcome=None,
                streamed=False,
                enhancement="wanted" if entry.record.enhancement else None,
                wording=None,
            )
            self._state_item(entry, 0)
            return record

    def published(self, job_id: str, run: int) -> None:
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is not None and entry.record.run == run:
                self._change(entry, published_at=self.now(), publishes=entry.record.publishes + 1)

    # -- a run
    def claim(self, job_id: str, run: int, *, worker_id: str, lease_s: float, token: str) -> Claim | None:
        with self._lock:
            entry, now = self._entries.get(job_id), self.now()
            if entry is None or entry.record.run != run or entry.document is None:
                return None
            record = entry.record
            if record.status == "processing" and entry.token == token:
                return Claim(load_job(entry.document), record)
            if record.status != "queued" or record.cancel_requested or record.due_at > now:
                return None
            seen = self._seen.get(worker_id)
            if record.queue in self._paused or (seen is not None and seen.draining):
                self._change(entry, published_at=None)
                return None
            entry.token = token
            record = self._start(entry, worker_id, now, lease_s)
            return Claim(load_job(entry.document), record)

    def _start(self, entry: Entry, worker_id: str, now: float, lease_s: float) -> Record:
        record = self._change(
            entry,
            status="processing",
            attempt=entry.record.attempt + 1,
            fence=entry.record.fence + 1,
            claimed_at=now,
            worker_id=worker_id,
            lease_until=now + lease_s,
            progress=0.0,
            stage=None,
            enhancement="over" if entry.record.enhancement else None,
        )
        entry.enhancer, entry.enhancing_until = None, 0.0
        line = (record.queue, record.priority)
        self._claimed[line] = (max(record.order, self._claimed.get(line, (0, 0.0))[0]), now)
        self._tell(entry, "processing", None)
        self._state_item(entry, record.attempt)
        return record

    def step(
        self,
        claim: Claim,
        *,
        progress: float | None = None,
        stage: str | None = None,
        items: Iterable[tuple[Literal["progress", "preview", "token"], dict[str, Any]]] = (),
        tell: bool = False,
    ) -> Verdict:
        told = list(items)
        with self._lock:
            entry = self._held(claim.job_id, claim.fence, claim.run)
            if entry is None:
                return Verdict.LOST
            before = entry.record
            at = before.progress if progress is None else max(before.progress, min(float(progress), 100.0))
            record = self._change(entry, progress=at, stage=stage or before.stage)
            moved = (record.progress, record.stage) != (before.progress, before.stage)
            if moved and not any(kind == "progress" for kind, _ in told):
                told.append(("progress", {}))
            for kind, data in told:
                self._note(entry, kind, json.loads(dump_json(data)))
            if tell:
                self._tell(entry, "processing", None, {"progress": record.progress})
            return Verdict.CANCEL if record.cancel_requested else Verdict.CONTINUE

    def _note(
        self, entry: Entry, kind: Literal["progress", "preview", "token"], data: dict[str, Any]
    ) -> None:
        if kind == "progress":
            data |= {"progress": entry.record.progress, "stage": entry.record.stage}
        if kind == "preview" and entry.latest_preview and entry.latest_preview in entry.items:
            entry.items.remove(entry.latest_preview)
        item = self._item(entry, kind, data)
        if kind == "preview":
            entry.latest_preview = item
        elif kind == "token":
            self._change(entry, streamed=True)

    def renew(self, claim: Claim, *, lease_s: float) -> bool:
        with self._lock:
            entry = self._held(claim.job_id, claim.fence, claim.run)
            if entry is not None:
                self._change(entry, lease_until=self.now() + lease_s)
            return entry is not None

    def release(self, claim: Claim, *, code: str, due_in_s: float) -> bool:
        with self._lock:
            entry = self._held(claim.job_id, claim.fence, claim.run)
            if entry is not None:
                self._fail_attempt(entry, code)
                self._requeue(entry, due_at=self.now() + due_in_s)
            return entry is not None

    def lose(self, job_id: str, *, fence: int, counted: bool = True) -> bool:
        with self._lock:
            entry = self._held(job_id, fence)
            if entry is None or not entry.record.repeatable:
                return False
            if counted:
                self._fail_attempt(entry, "WORKER_LOST")
            else:
                self._change(entry, attempt=entry.record.attempt - 1)
            self._requeue(entry, due_at=self.now())
            return True

    def _fail_attempt(self, entry: Entry, code: str) -> None:
        failures = entry.record.failures
        self._change(entry, failures={**failures, code: failures.get(code, 0) + 1})
        self._counters[f"attempts.released.{code}"] += 1

    def end(
        self, job_id: str, *, run: int, fence: int, outcome: Outcome, worker_id: str | None = None
    ) -> bool:
        kept = load_outcome(dump_outcome(outcome))
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or (entry.record.run, entry.record.fence) != (run, fence):
                return False
            if entry.record.finished:
                return entry.record.outcome == kept
            self._finish(entry, outcome, kept, worker_id)
            return True

    def _finish(self, entry: Entry, outcome: Outcome, kept: Outcome | None, worker_id: str | None) -> None:
        now, status = self.now(), outcome.status
        record = self._change(
            entry,
            status=status,
            outcome=kept,
            finished_at=now,
            progress=100.0 if status == "completed" else entry.record.progress,
            worker_id=worker_id or entry.record.worker_id,
            lease_until=None,
            stage=None,
        )
        entry.token, entry.items_until = None, now + STREAM_KEPT_S
        entry.enhancer, entry.enhancing_until = None, 0.0
        self._tell(entry, status, kept)
        error = {"error": outcome.error.to_public()} if outcome.error else {}
        self._item(entry, "done", {"status": status, "run": record.run, **error})
        self._counters[f"jobs.{record.type}.{status}"] += 1
        took_ms = generation_ms(outcome)
        if took_ms is not None:
            self._counters[f"generation_ms.{record.type}.sum"] += took_ms
        unsigned = unsigned_assets(outcome)
        if unsigned:
            self._counters["assets.unsigned"] += unsigned
        if len((entry.document or "").encode()) > self._limits.document_limit:
            if status == "completed":
                entry.document = None
            else:
                entry.oversized_until = now + self._limits.retry_window_s

    def lift(self, job_id: str, *, run: int, priority: int) -> bool:
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or entry.lifted or (entry.record.status, entry.record.run) != ("queued", run):
                return False
            if priority >= entry.record.priority:
                return False
            entry.lifted = True
            self._change(entry, priority=priority)
            return True

    def request_cancel(self, job_id: str) -> Record:
        with self._lock:
            entry = self._find(job_id, "cancelled", ("queued", "processing"))
            return self._change(entry, cancel_requested=True)

    def delete(self, job_id: str) -> Record:
        with self._lock:
            entry = self._find(job_id, "deleted", ("completed", "failed", "cancelled"))
            if self._pending(job_id):
                raise refusal(job_id, "deleted", "callback")
            self._forget(job_id)
            return replace(entry.record)

    def _find(self, job_id: str, wish: str, allowed: tuple[str, ...]) -> Entry:
        entry = self._entries.get(job_id)
        if entry is None:
            raise refusal(job_id, wish, "missing")
        if entry.record.status not in allowed:
            raise refusal(job_id, wish, entry.record.status)
        return entry
