"""The outbox: events that are still to be delivered to callers, and those that were."""

from __future__ import annotations

from ourvidz.errors import NotFound
from ourvidz.ledger.base import DELIVERED_TTL_S, LedgerBase
from ourvidz.ledger.connection import new_call_token
from ourvidz.records.codec import load_event, pairs
from ourvidz.records.record import DeliveryState, OutboxEvent


class OutboxOperations(LedgerBase):
    """Verbs of callback delivery. Events of one job are delivered one at a time, in order.

    The number of deliveries of an event is the fence of its lease: a holder with fewer can no longer postpone
    or give it up.
    """

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

    def mark_delivered(self, event: OutboxEvent, *, status: int) -> None:
        """Note that the receiver answered with a 2xx `status`. A `processing` event is deleted, a terminal
        one kept for a day."""
        self._connection.run_script("mark_delivered", event.event_id, status, int(DELIVERED_TTL_S))

    def postpone(self, event: OutboxEvent, *, due_in_s: float, status: int | None, error: str) -> None:
        """Make an event due again in `due_in_s`, after a delivery failed with this HTTP status or error."""
        self._connection.run_script(
            "postpone", event.event_id, event.deliveries, due_in_s, status, error, new_call_token()
        )

    def dead_letter(self, event: OutboxEvent, *, status: int | None, error: str) -> None:
        """Give an event up. A terminal one becomes a dead letter, a `processing` one is deleted."""
        self._connection.run_script("dead_letter", event.event_id, event.deliveries, status, error)

    def get_event(self, event_id: str) -> OutboxEvent | None:
        """One event by id."""
        fields = self._connection.with_retries(
            lambda: self._connection.client.hgetall(self._keys.event(event_id))
        )
        return load_event(event_id, fields) if fields else None

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
