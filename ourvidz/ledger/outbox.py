"""The outbox: events that are still to be delivered to callers, and those that were."""

from __future__ import annotations

import json

from ourvidz.errors import NotFound
from ourvidz.ledger.base import DELIVERED_TTL_S, LedgerBase
from ourvidz.ledger.connection import new_call_token
from ourvidz.records.codec import load_event, pairs
from ourvidz.records.record import DeliveryState, NextLease, OutboxEvent, ReadyJob, Record, event_id

ANNOUNCED_AT_ONCE = 100
"""Jobs that wait for an io process at most when more are announced that became due by time."""


class OutboxOperations(LedgerBase):
    """Verbs of callback delivery. Events of one job are delivered one at a time, in order.

    The script that makes an event due announces its job on a list, from which io processes take it. The list
    is a hint: what is lost with it is still due. The number of deliveries of an event is the fence of its
    lease: a holder with fewer can no longer postpone or give it up.
    """

    def take_ready(self, *, wait_s: float) -> ReadyJob | None:
        """Take one announced job, the longest announced first. Waits up to `wait_s` for one; None without."""
        taken = self._connection.with_retries(
            lambda: self._connection.client.blpop([self._keys.ready], timeout=wait_s)
        )
        if taken is None:
            return None
        job_id, *rest = json.loads(taken[1])
        return ReadyJob(job_id, *rest or [None])

    def announce_due(self, worker_id: str) -> bool:
        """Announce jobs whose event has become due by time. Every io process does, once a second. False, and
        nothing is announced, while an operator has this one drained."""
        return bool(self._connection.run_script("announce_due", ANNOUNCED_AT_ONCE, worker_id))

    def due_deliveries(self, limit: int = 500) -> list[str]:
        """Ids of jobs with an event that is due and not leased, most overdue first. Of more than `limit` jobs
        any stretch, so that each gets its turn."""
        return list(self._connection.run_script("due_deliveries", limit))

    def next_event(self, job_id: str) -> OutboxEvent | None:
        """The oldest pending event of a job, due or not."""
        return _load_answer(self._connection.run_script("next_event", job_id))

    def lease_event(self, job_id: str, *, lease_s: float, token: str) -> OutboxEvent | None:
        """Lease the next event of a job for one delivery: deliveries + 1. None when it is not due, is leased
        by another token, or nothing is pending. The same `token` sent twice gets the same lease.

        `WorkerUnavailable` also when too few replicas confirm: a failover could lose the ending that the
        caller has heard of, and the job would end again.
        """
        return _load_answer(self._connection.run_replicated_script("lease_event", job_id, lease_s, token))

    def mark_delivered(
        self, event: OutboxEvent, *, status: int, then: NextLease | None = None
    ) -> OutboxEvent | None:
        """Note that the receiver answered with a 2xx `status`. A `processing` event is deleted, a terminal
        one kept for a day. With `then` leases and returns the next event of the job, as `lease_event` does.
        """
        arguments = (event.event_id, event.job_id, status, int(DELIVERED_TTL_S))
        return self._settle("mark_delivered", arguments, then)

    def postpone(self, event: OutboxEvent, *, due_in_s: float, status: int | None, error: str) -> None:
        """Make an event due again in `due_in_s`, after a delivery failed with this HTTP status or error."""
        self._connection.run_script(
            "postpone", event.event_id, event.deliveries, due_in_s, status, error, new_call_token()
        )

    def dead_letter(
        self, event: OutboxEvent, *, status: int | None, error: str, then: NextLease | None = None
    ) -> OutboxEvent | None:
        """Give an event up. A terminal one becomes a dead letter, a `processing` one is deleted. With `then`
        leases and returns the next event of the job, as `lease_event` does."""
        arguments = (event.event_id, event.job_id, event.deliveries, status, error)
        return self._settle("dead_letter", arguments, then)

    def _settle(self, verb: str, arguments: tuple[object, ...], then: NextLease | None) -> OutboxEvent | None:
        if then is None:
            self._connection.run_script(verb, *arguments, None, None)
            return None
        answer = self._connection.run_replicated_script(verb, *arguments, then.lease_s, then.token)
        return _load_answer(answer)

    def get_event(self, event_id: str) -> OutboxEvent | None:
        """One event by id."""
        fields = self._connection.with_retries(
            lambda: self._connection.client.hgetall(self._keys.event(event_id))
        )
        return load_event(event_id, fields) if fields else None

    def last_event(self, record: Record) -> OutboxEvent | None:
        """The newest event of a job's current run. None if it has none, or none that is kept."""
        sequence = self._connection.with_retries(
            lambda: self._connection.client.hget(self._keys.job(record.job_id), "seq")
        )
        return self.get_event(event_id(record, int(sequence))) if sequence else None

    def list_events(self, state: DeliveryState, limit: int = 100) -> list[OutboxEvent]:
        """Events in one delivery state, newest first."""
        name = self._keys.events(state)
        ids = self._connection.with_retries(lambda: self._connection.client.zrevrange(name, 0, limit - 1))
        rows = self._connection.read_hashes(self._keys.event(event_id) for event_id in ids)
        return [load_event(event_id, row) for event_id, row in zip(ids, rows, strict=True) if row]

    def replay(self, event_id: str) -> OutboxEvent:
        """Make a dead or delivered event pending again, due now, its deliveries counted from 0.
        `NotFound` when there is none."""
        fields = self._connection.run_script("replay", event_id)
        if fields is None:
            raise NotFound(f"there is no callback {event_id}")
        return load_event(event_id, pairs(fields))


def _load_answer(answer: list[list[str]] | None) -> OutboxEvent | None:
    """The event in a script's answer: its id and its hash."""
    return load_event(str(answer[0]), pairs(answer[1])) if answer else None
