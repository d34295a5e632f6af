"""What callers are still to be told, kept in Redis."""

from __future__ import annotations

from ourvidz.errors import NotFound
from ourvidz.ledger.codec import load_event, pairs
from ourvidz.ledger.limits import LETTER_KEPT_S
from ourvidz.ledger.record import DeliveryState, OutboxEvent
from ourvidz.ledger.redis_keys import Keys
from ourvidz.ledger.redis_link import Link, call_token


class RedisOutbox:
    """The outbox verbs. A row's deliveries are its fence: who took it earlier may no longer postpone it."""

    _link: Link
    _keys: Keys

    def due(self, limit: int = 500) -> list[str]:
        return list(self._link.call("due", limit))

    def head(self, job_id: str) -> OutboxEvent | None:
        return _found(self._link.call("head", job_id))

    def take(self, job_id: str, *, lease_s: float, token: str) -> OutboxEvent | None:
        return _found(self._link.call("take", job_id, lease_s, token))

    def delivered(self, event: OutboxEvent, *, status: int) -> None:
        self._link.call("delivered", event.event_id, status, int(LETTER_KEPT_S))

    def postpone(self, event: OutboxEvent, *, due_in_s: float, status: int | None, error: str) -> None:
        self._link.call("postpone", event.event_id, event.deliveries, due_in_s, status, error, call_token())

    def bury(self, event: OutboxEvent, *, status: int | None, error: str) -> None:
        self._link.call("bury", event.event_id, event.deliveries, status, error)

    def event(self, event_id: str) -> OutboxEvent | None:
        fields = self._link.ask(lambda: self._link.client.hgetall(self._keys.event(event_id)))
        return load_event(event_id, fields) if fields else None

    def letters(self, state: DeliveryState, limit: int = 100) -> list[OutboxEvent]:
        name = self._keys.letters(state)
        ids = self._link.ask(lambda: self._link.client.zrevrange(name, 0, limit - 1))
        rows = self._link.hashes(self._keys.event(each) for each in ids)
        return [load_event(each, fields) for each, fields in zip(ids, rows, strict=True) if fields]

    def replay(self, event_id: str) -> OutboxEvent:
        fields = self._link.call("replay", event_id)
        if fields is None:
            raise NotFound(f"there is no callback {event_id}")
        return load_event(event_id, pairs(fields))


def _found(answer: list[list[str]] | None) -> OutboxEvent | None:
    return load_event(str(answer[0]), pairs(answer[1])) if answer else None
