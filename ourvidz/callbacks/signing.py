"""The headers that let a receiver trust a callback, and the same check for our own receiver.

`X-Callback-Signature` is what receivers in the field verify; the three `webhook-*` headers follow
https://www.standardwebhooks.com and bind the body to an id and a time.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from ourvidz.errors import SettingsError

Check = Literal["absent", "valid", "invalid"]

TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of each signature. `ok`: at least one holds and none is wrong."""

    callback: Check
    webhook: Check

    @property
    def ok(self) -> bool:
        checks = (self.callback, self.webhook)
        return "valid" in checks and "invalid" not in checks


def headers(
    body: bytes,
    *,
    event_id: str,
    at: datetime,
    service_key: str | None = None,
    callback_secrets: Sequence[str] = (),
    webhook_secrets: Sequence[str] = (),
    traceparent: str | None = None,
) -> dict[str, str]:
    """The headers of one delivery, made at `at` (aware). A header whose secret is not given is left out.

    The first of `callback_secrets` signs; all of `webhook_secrets` do, because that header has room for
    several. `SettingsError` for a webhook secret that is not base64.
    """
    made = {"traceparent": traceparent or trace_parent(event_id, at)}
    if service_key:
        made["Authorization"] = f"Bearer {service_key}"
    if callback_secrets:
        made["X-Callback-Signature"] = _callback_signature(callback_secrets[0], body)
    if webhook_secrets:
        moment = at.astimezone(UTC)
        text = body.decode()
        made["webhook-id"] = event_id
        made["webhook-timestamp"] = str(int(moment.timestamp()))
        made["webhook-signature"] = " ".join(
            webhook(secret).sign(event_id, moment, text) for secret in webhook_secrets
        )
    return made


def trace_parent(event_id: str, at: datetime) -> str:
    """A W3C trace parent: one trace an event, one span a delivery. https://www.w3.org/TR/trace-context/"""
    trace_id = hashlib.sha256(event_id.encode()).hexdigest()[:32]
    span_id = hashlib.sha256(f"{event_id}\0{at.timestamp()}".encode()).hexdigest()[:16]
    return f"00-{trace_id}-{span_id}-01"


def webhook(secret: str) -> Webhook:
    """The signer of a Standard Webhooks secret (`whsec_` + base64). `SettingsError` when it is none."""
    try:
        return Webhook(secret)
    except (ValueError, binascii.Error, EmptyWebhookSecretError):
        name = "OURVIDZ_WEBHOOK_SECRET"
        raise SettingsError(f"{name}: a secret must be whsec_ and base64", field=name) from None


def verify(
    body: bytes,
    headers: Mapping[str, str],
    *,
    callback_secrets: Sequence[str] = (),
    webhook_secrets: Sequence[str] = (),
    tolerance: timedelta = TOLERANCE,
    now: datetime | None = None,
) -> Verified:
    """Check what a request carries, in constant time. Never raises for anything a sender may write; a
    signature without a secret to check it with is invalid."""
    given = {name.lower(): value for name, value in headers.items()}
    return Verified(
        callback=_check_callback(body, given, callback_secrets),
        webhook=_check_webhook(body, given, webhook_secrets, tolerance, now or datetime.now(UTC)),
    )


def _callback_signature(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _check_callback(body: bytes, given: Mapping[str, str], secrets: Sequence[str]) -> Check:
    signature = given.get("x-callback-signature")
    if signature is None:
        return "absent"
    return _any_equal([_callback_signature(secret, body) for secret in secrets], [signature])


def _check_webhook(
    body: bytes, given: Mapping[str, str], secrets: Sequence[str], tolerance: timedelta, now: datetime
) -> Check:
    id_, stamp, signatures = (given.get(f"webhook-{part}") for part in ("id", "timestamp", "signature"))
    if id_ is None and stamp is None and signatures is None:
        return "absent"
    if not (id_ and stamp and signatures) or not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 11):
        return "invalid"
    if abs(int(stamp) - now.timestamp()) > tolerance.total_seconds():
        return "invalid"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "invalid"
    moment = datetime.fromtimestamp(int(stamp), UTC)
    # The library's own verify has a fixed tolerance and lets binascii's errors through.
    expected = [webhook(secret).sign(id_, moment, text) for secret in secrets]
    return _any_equal(expected, signatures.split(" "))


def _any_equal(expected: Sequence[str], found: Sequence[str]) -> Check:
    pairs = [
        hmac.compare_digest(ours.encode(), theirs.encode("utf-8", "replace"))
        for ours in expected
        for theirs in found
    ]
    return "valid" if any(pairs) else "invalid"
