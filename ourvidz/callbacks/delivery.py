"""Delivery: posts the outbox events of a job in order and records each result in the ledger."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from ourvidz import log
from ourvidz.callbacks import payload, signing
from ourvidz.callbacks.limiter import PerHostLimiter
from ourvidz.callbacks.retry import Delivered, Retry, Rng, decide, parse_retry_after
from ourvidz.callbacks.target import Target
from ourvidz.ledger.store import Ledger
from ourvidz.net.client import HttpClient, HttpResponse, RequestFailure
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.records.record import OutboxEvent

__all__ = ["CallbackSender", "Target"]

LEASE_MARGIN_S = 5.0
"""How much longer than the request timeout an event is leased: time to build it and to record the result."""

_log = log.get(__name__)


class CallbackSender:
    """Delivers callbacks. Safe to share between threads; use one per process, as its limiter counts the
    deliveries of this process."""

    def __init__(
        self,
        ledger: Ledger,
        target: Target,
        *,
        limiter: PerHostLimiter | None = None,
        rng: Rng | None = None,
    ) -> None:
        self._ledger = ledger
        self._target = target
        self._limiter = limiter or PerHostLimiter()
        self._rng = rng or random.SystemRandom()
        policy = EgressPolicy(target.hosts)
        self._client = HttpClient(timeout_s=target.timeout_s, connector=policy, keep_alive=True)

    def deliver(self, job_id: str) -> None:
        """Post the due events of a job, oldest first, until none is due.

        Returns at once if the receiver's host is at its concurrency limit; a thread that finishes there then
        continues with this job. The result of each post goes into the ledger, not to the caller. Raises only
        what the ledger raises.
        """
        head = self._ledger.next_event(job_id)
        if head is not None:
            host = self._target.limiter_key(self._target.url(head.callback_url))
            self._limiter.run(host, job_id, self._deliver_due)

    def _deliver_due(self, job_id: str) -> None:
        """Deliver the due events of a job in order, until none is due."""
        lease_s = self._target.timeout_s + LEASE_MARGIN_S
        while event := self._ledger.lease_event(job_id, lease_s=lease_s, token=uuid4().hex):
            self._send(event)

    def _send(self, event: OutboxEvent) -> None:
        """Deliver one leased event once and record the result: delivered, postponed or given up."""
        target = self._target
        url = target.url(event.callback_url)
        if refused := target.refusal(url):
            self._give_up(event, status=None, error=refused)
            return
        try:
            document = payload.build(event, worker_version=target.worker_version, assets_as=target.assets_as)
            body = payload.encode(document)
        except (TypeError, ValueError) as error:
            # Raised on, it would be raised again at every delivery; a dead letter is visible.
            reason = f"the payload cannot be written: {type(error).__name__}"
            self._give_up(event, status=None, error=reason)
            return
        now = datetime.fromtimestamp(self._ledger.now(), UTC)
        self._record(event, self._post(event, str(url), body, now), now)

    def _post(
        self, event: OutboxEvent, url: str, body: bytes, now: datetime
    ) -> HttpResponse | RequestFailure:
        """POST the signed body to `url`."""
        target = self._target
        signatures = signing.signed_headers(
            body,
            event_id=event.event_id,
            at=now,
            service_key=target.service_key_for(url),
            callback_secrets=target.callback_secrets,
            webhook_secrets=target.webhook_secrets,
        )
        headers = {"Content-Type": "application/json", "User-Agent": f"ourvidz/{target.worker_version}"}
        return self._client.post(url, body=body, headers=headers | signatures)

    def _record(self, event: OutboxEvent, result: HttpResponse | RequestFailure, now: datetime) -> None:
        """Decide by the retry policy what follows from a post, and record it."""
        status = result.status if isinstance(result, HttpResponse) else None
        retry_after = result.headers.get("retry-after") if isinstance(result, HttpResponse) else None
        error = result.reason if isinstance(result, RequestFailure) else f"HTTP {status}"
        decision = decide(
            event.kind,
            deliveries=event.deliveries,
            age_s=now.timestamp() - event.at,
            status=status,
            retry_after_s=parse_retry_after(retry_after, now=now),
            window_s=self._target.window_s,
            rng=self._rng,
        )
        if isinstance(decision, Delivered) and status is not None:
            self._ledger.mark_delivered(event, status=status)
            _log.info("callback_delivered", **_log_fields(event), http_status=status)
        elif isinstance(decision, Retry):
            self._ledger.postpone(event, due_in_s=decision.due_in_s, status=status, error=error)
            due_in_s = round(decision.due_in_s, 1)
            _log.info("callback_postponed", **_log_fields(event), error=error, due_in_s=due_in_s)
        else:
            self._give_up(event, status=status, error=error)

    def _give_up(self, event: OutboxEvent, *, status: int | None, error: str) -> None:
        """Make a terminal event a dead letter; drop a `processing` event."""
        self._ledger.dead_letter(event, status=status, error=error)
        name = "callback_dead" if event.terminal else "callback_dropped"
        _log.warning(name, **_log_fields(event), error=error)


def _log_fields(event: OutboxEvent) -> dict[str, Any]:
    return {
        "job_id": event.job_id,
        "event_id": event.event_id,
        "kind": event.kind,
        "deliveries": event.deliveries,
    }
