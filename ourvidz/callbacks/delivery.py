"""Delivery: posts the outbox events of a job in order and records each result in the ledger."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from ourvidz import log
from ourvidz.callbacks import payload, signing
from ourvidz.callbacks.limiter import PerHostLimiter
from ourvidz.callbacks.retry import Delivered, Retry, Rng, decide
from ourvidz.callbacks.target import Target
from ourvidz.ledger.store import Ledger
from ourvidz.net.client import HttpClient, HttpResponse, RequestFailure
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.retry_after import parse_retry_after
from ourvidz.records.record import NextLease, OutboxEvent, ReadyJob

__all__ = ["CallbackSender", "Target"]

LEASE_MARGIN_S = 5.0
"""How much longer than the request timeout an event is leased: time to build it and to record the result."""

BAD_DATA = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What stored values of another type or size raise when a payload is built of them."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """A leased event. `asked_at`: when the lease was asked for, in seconds of the monotonic clock, so that it
    ends no earlier than its length after that."""

    event: OutboxEvent
    asked_at: float


class CallbackSender:
    """Delivers callbacks. Safe to share between threads; use one per process, as its limiter counts the
    deliveries of this process.

    `clock` is this host's time, by which requests are signed: receivers compare it with theirs, and the time
    of the ledger may be ahead for a while.
    """

    def __init__(
        self,
        ledger: Ledger,
        target: Target,
        *,
        limiter: PerHostLimiter | None = None,
        rng: Rng | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._target = target
        self._limiter = limiter or PerHostLimiter(favoured=target.limiter_key(target.default_url))
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._lease_s = target.timeout_s + LEASE_MARGIN_S
        self._stopped = threading.Event()
        policy = EgressPolicy(target.hosts)
        self._client = HttpClient(timeout_s=target.timeout_s, connector=policy, keep_alive=True)

    def deliver(self, job_id: str) -> None:
        """Post the due events of a job, as `deliver_ready` does; the outbox is asked for its receiver."""
        head = self._ledger.next_event(job_id)
        if head is not None:
            self.deliver_ready(ReadyJob(job_id, head.callback_url))

    def deliver_ready(self, ready: ReadyJob) -> None:
        """Post the due events of a job, oldest first, until none is due.

        Returns at once if the receiver's host is at its concurrency limit; a thread that finishes there then
        continues with this job. The result of each post goes into the ledger, not to the caller. Raises only
        what the ledger raises.
        """
        host = self._target.limiter_key(self._target.url(ready.callback_url))
        self._limiter.run(host, ready.job_id, self._deliver_due)

    def stop(self) -> None:
        """Begin no further delivery: each thread ends with the one that it is at."""
        self._stopped.set()
        self._limiter.close()

    def _deliver_due(self, job_id: str) -> None:
        """Deliver the due events of a job in order, until none is due."""
        lease = self._leased(
            lambda: self._ledger.lease_event(job_id, lease_s=self._lease_s, token=uuid4().hex)
        )
        while lease is not None:
            lease = self._send(lease)

    def _leased(self, call: Callable[[], OutboxEvent | None]) -> Lease | None:
        """The lease that a call has taken, if any."""
        asked_at = time.monotonic()
        event = call()
        return None if event is None else Lease(event, asked_at)

    def _next_lease(self) -> NextLease | None:
        """The lease of a job's next event, which the call that settles one event takes; none after `stop`."""
        return None if self._stopped.is_set() else NextLease(self._lease_s, uuid4().hex)

    def _send(self, lease: Lease) -> Lease | None:
        """Deliver one leased event once and record the result: delivered, postponed or given up. Returns the
        lease of the job's next event if it is due."""
        event, target = lease.event, self._target
        url = target.url(event.callback_url)
        if refused := target.refusal(url, registration=event.is_registration):
            return self._give_up(event, status=None, error=refused)
        try:
            document = payload.build(event, worker_version=target.worker_version, assets_as=target.assets_as)
            body = payload.encode(document)
        except BAD_DATA as error:
            # Raised on, it would be raised again at every delivery; a dead letter is visible.
            reason = f"the payload cannot be written: {type(error).__name__}"
            return self._give_up(event, status=None, error=reason)
        # The ledger's time, without asking again: the lease has just begun.
        now = datetime.fromtimestamp((event.leased_until or 0.0) - self._lease_s, UTC)
        if time.monotonic() - lease.asked_at > LEASE_MARGIN_S:
            # The answer to the lease was late, or this process was suspended. The post could outlast the
            # lease: another process might post this event, and the next one, meanwhile. It is due again then.
            _log.warning("lease_too_short", **_log_fields(event))
            return None
        return self._record(event, self._post(event, str(url), body), now)

    def _post(self, event: OutboxEvent, url: str, body: bytes) -> HttpResponse | RequestFailure:
        """POST the signed body to `url`. A defect of ours is a failure like others: raised on, the event
        would be posted again as soon as its lease ends, for ever."""
        try:
            return self._client.post(url, body=body, headers=self._headers(event, url, body))
        except Exception as error:  # noqa: BLE001
            _log.exception("post_failed", **_log_fields(event))
            return RequestFailure(f"the request cannot be made: {type(error).__name__}")

    def _headers(self, event: OutboxEvent, url: str, body: bytes) -> dict[str, str]:
        """The headers of a post that is made now."""
        target = self._target
        signatures = signing.signed_headers(
            body,
            event_id=event.event_id,
            at=datetime.fromtimestamp(self._clock(), UTC),
            service_key=target.service_key_for(url, registration=event.is_registration),
            callback_secrets=target.callback_secrets,
            webhook_secrets=target.webhook_secrets,
        )
        headers = {"Content-Type": "application/json", "User-Agent": f"ourvidz/{target.worker_version}"}
        return headers | signatures

    def _record(
        self, event: OutboxEvent, result: HttpResponse | RequestFailure, now: datetime
    ) -> Lease | None:
        """Decide by the retry policy what follows from a post, and record it."""
        status = result.status if isinstance(result, HttpResponse) else None
        retry_after = result.headers.get("retry-after") if isinstance(result, HttpResponse) else None
        error = result.reason if isinstance(result, RequestFailure) else f"HTTP {status}"
        decision = decide(
            event.kind,
            deliveries=event.deliveries,
            age_s=now.timestamp() - event.at,
            status=status,
            retry_after_s=parse_retry_after(retry_after, now=datetime.fromtimestamp(self._clock(), UTC)),
            window_s=self._target.window_s,
            rng=self._rng,
        )
        if isinstance(decision, Delivered) and status is not None:
            following = self._leased(
                lambda: self._ledger.mark_delivered(event, status=status, then=self._next_lease())
            )
            _log.info("callback_delivered", **_log_fields(event), http_status=status)
            return following
        if isinstance(decision, Retry):
            self._ledger.postpone(event, due_in_s=decision.due_in_s, status=status, error=error)
            due_in_s = round(decision.due_in_s, 1)
            _log.info("callback_postponed", **_log_fields(event), error=error, due_in_s=due_in_s)
            return None
        return self._give_up(event, status=status, error=error)

    def _give_up(self, event: OutboxEvent, *, status: int | None, error: str) -> Lease | None:
        """Make a terminal event a dead letter; drop a `processing` event. Returns the lease of the job's next
        event if it is due."""
        following = self._leased(
            lambda: self._ledger.dead_letter(event, status=status, error=error, then=self._next_lease())
        )
        name = "callback_dead" if event.terminal else "callback_dropped"
        _log.warning(name, **_log_fields(event), error=error)
        return following


def _log_fields(event: OutboxEvent) -> dict[str, Any]:
    return {
        "job_id": event.job_id,
        "event_id": event.event_id,
        "kind": event.kind,
        "deliveries": event.deliveries,
    }
