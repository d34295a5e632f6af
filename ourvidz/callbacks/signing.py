"""Signatures of callbacks: the headers of a delivery, and their verification by our own receiver.

`X-Callback-Signature` is an HMAC of the body, which the receivers in the field verify. The three `webhook-*`
headers follow https://www.standardwebhooks.com and bind the body to an event id and a time.
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
from ourvidz.service_key import key_headers

Check = Literal["absent", "valid", "invalid"]

TOLERANCE = timedelta(minutes=5)
"""How far a webhook timestamp may be from the receiver's clock."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying a request: one check for each signature."""

    callback: Check
    webhook: Check

    @property
    def ok(self) -> bool:
        """Whether at least one signature is valid and none is invalid."""
        checks = (self.callback, self.webhook)
        return "valid" in checks and "invalid" not in checks


def signed_headers(
    body: bytes,
    *,
    event_id: str,
    at: datetime,
    service_key: str | None = None,
    callback_secrets: Sequence[str] = (),
    webhook_secrets: Sequence[str] = (),
    traceparent: str | None = None,
) -> dict[str, str]:
    """The headers of one delivery that is made at `at`, which must be timezone-aware.

    A header whose secret is missing is left out. The first of `callback_secrets` signs; all of
    `webhook_secrets` do, as that header holds several signatures. Without a `traceparent` one is derived
    from the event. Raises `SettingsError` for a webhook secret that is not base64.
    """
    headers = {"traceparent": traceparent or derive_traceparent(event_id, at)}
    if service_key:
        headers |= key_headers(service_key)
    if callback_secrets:
        headers["X-Callback-Signature"] = _callback_signature(callback_secrets[0], body)
    if webhook_secrets:
        moment = at.astimezone(UTC)
        text = body.decode()
        headers["webhook-id"] = event_id
        headers["webhook-timestamp"] = str(int(moment.timestamp()))
        headers["webhook-signature"] = " ".join(
            webhook_signer(secret).sign(event_id, moment, text) for secret in webhook_secrets
        )
    return headers


def derive_traceparent(event_id: str, at: datetime) -> str:
    """A W3C trace parent with one trace per event and one span per delivery.

    https://www.w3.org/TR/trace-context/
    """
    trace_id = hashlib.sha256(event_id.encode()).hexdigest()[:32]
    span_id = hashlib.sha256(f"{event_id}\0{at.timestamp()}".encode()).hexdigest()[:16]
    return f"00-{trace_id}-{span_id}-01"


def webhook_signer(secret: str) -> Webhook:
    """The signer for a Standard Webhooks secret, `whsec_` and base64. Raises `SettingsError` if malformed."""
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
) -> Verification:
    """Verify the signatures of a request with any of the secrets, in constant time.

    A signature for which there is no secret is invalid. No content of a request raises an exception.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    return Verification(
        callback=_check_callback(body, lowered, callback_secrets),
        webhook=_check_webhook(body, lowered, webhook_secrets, tolerance, now or datetime.now(UTC)),
    )


def _callback_signature(secret: str, body: bytes) -> str:
    """The value of `X-Callback-Signature`: the HMAC-SHA256 of the body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _check_callback(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> Check:
    """Check `X-Callback-Signature` against each secret."""
    signature = headers.get("x-callback-signature")
    if signature is None:
        return "absent"
    return _any_equal([_callback_signature(secret, body) for secret in secrets], [signature])


def _check_webhook(
    body: bytes, headers: Mapping[str, str], secrets: Sequence[str], tolerance: timedelta, now: datetime
) -> Check:
    """Check the Standard Webhooks headers: timestamp within `tolerance`, and a signature of one secret."""
    id_, stamp, signatures = (headers.get(f"webhook-{part}") for part in ("id", "timestamp", "signature"))
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
    # The library's own verify has a fixed tolerance and raises binascii.Error for malformed signatures.
    expected = [webhook_signer(secret).sign(id_, moment, text) for secret in secrets]
    return _any_equal(expected, signatures.split(" "))


def _any_equal(expected: Sequence[str], signatures: Sequence[str]) -> Check:
    """Whether any signature is an expected one, compared in constant time."""
    matches = [
        hmac.compare_digest(valid.encode(), signature.encode("utf-8", "replace"))
        for valid in expected
        for signature in signatures
    ]
    return "valid" if any(matches) else "invalid"
