"""The courier: takes outbox rows of a job in order, posts them, and notes in the ledger how it went."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from ourvidz import log
from ourvidz.callbacks import payload, signing
from ourvidz.callbacks.lanes import PerHostLimiter
from ourvidz.callbacks.retry import Again, Delivered, Rng, decide, retry_after_s
from ourvidz.callbacks.target import Target
from ourvidz.ledger.record import OutboxEvent
from ourvidz.ledger.store import Ledger
from ourvidz.net.client import HttpClient, HttpResponse, RequestFailure
from ourvidz.net.egress_policy import EgressPolicy

__all__ = ["CallbackSender", "Target"]

LEASE_MARGIN_S = 5.0
"""What a taken row is held beyond the longest post, for building it and for noting how it went."""

_log = log.get(__name__)


class CallbackSender:
    """Delivers callbacks. Safe to share between threads; one a process, because its lanes count what is
    under way."""

    def __init__(
        self, ledger: Ledger, target: Target, *, lanes: PerHostLimiter | None = None, rng: Rng | None = None
    ) -> None:
        self._ledger = ledger
        self._target = target
        self._lanes = lanes or PerHostLimiter()
        self._rng = rng or random.SystemRandom()
        self._client = HttpClient(timeout_s=target.timeout_s, connector=EgressPolicy(target.hosts))

    def deliver(self, job_id: str) -> None:
        """Post what is due of this job, oldest first, until nothing is.

        Returns at once when the receiver's host is busy enough: a thread that is done there goes on with
        this job. Raises only what the ledger raises; what becomes of a post is written there.
        """
        head = self._ledger.next_event(job_id)
        if head is not None:
            lane = self._target.lane(self._target.url(head.callback_url))
            self._lanes.run(lane, job_id, self._drain)

    def _drain(self, job_id: str) -> None:
        lease_s = self._target.timeout_s + LEASE_MARGIN_S
        while event := self._ledger.lease_event(job_id, lease_s=lease_s, token=uuid4().hex):
            self._send(event)

    def _send(self, event: OutboxEvent) -> None:
        target = self._target
        url = target.url(event.callback_url)
        if refused := target.refusal(url):
            self._bury(event, status=None, error=refused)
            return
        try:
            told = payload.build(event, worker_version=target.worker_version, assets_as=target.assets_as)
            body = payload.encode(told)
        except (TypeError, ValueError) as broken:
            # A row that cannot be told would come back for ever; a dead letter is seen.
            self._bury(event, status=None, error=f"the payload cannot be written: {type(broken).__name__}")
            return
        now = datetime.fromtimestamp(self._ledger.now(), UTC)
        self._settle(event, self._post(event, str(url), body, now), now)

    def _post(
        self, event: OutboxEvent, url: str, body: bytes, now: datetime
    ) -> HttpResponse | RequestFailure:
        target = self._target
        signed = signing.headers(
            body,
            event_id=event.event_id,
            at=now,
            service_key=target.service_key_for(url),
            callback_secrets=target.callback_secrets,
            webhook_secrets=target.webhook_secrets,
        )
        spoken = {"Content-Type": "application/json", "User-Agent": f"ourvidz/{target.worker_version}"}
        return self._client.post(url, body=body, headers=spoken | signed)

    def _settle(self, event: OutboxEvent, answer: HttpResponse | RequestFailure, now: datetime) -> None:
        status, asked = (
            (answer.status, answer.headers.get("retry-after"))
            if isinstance(answer, HttpResponse)
            else (None, None)
        )
        error = answer.reason if isinstance(answer, RequestFailure) else f"HTTP {status}"
        decision = decide(
            event.kind,
            deliveries=event.deliveries,
            age_s=now.timestamp() - event.at,
            status=status,
            retry_after_s=retry_after_s(asked, now=now),
            window_s=self._target.window_s,
            rng=self._rng,
        )
        if isinstance(decision, Delivered) and status is not None:
            self._ledger.mark_delivered(event, status=status)
            _log.info("callback_delivered", **_about(event), http_status=status)
        elif isinstance(decision, Again):
            self._ledger.postpone(event, due_in_s=decision.due_in_s, status=status, error=error)
            _log.info(
                "callback_postponed", **_about(event), error=error, due_in_s=round(decision.due_in_s, 1)
            )
        else:
            self._bury(event, status=status, error=error)

    def _bury(self, event: OutboxEvent, *, status: int | None, error: str) -> None:
        self._ledger.dead_letter(event, status=status, error=error)
        _log.warning("callback_dead" if event.terminal else "callback_dropped", **_about(event), error=error)


def _about(event: OutboxEvent) -> dict[str, Any]:
    return {
        "job_id": event.job_id,
        "event_id": event.event_id,
        "kind": event.kind,
        "deliveries": event.deliveries,
    }
