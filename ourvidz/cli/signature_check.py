"""The check of `ourvidz doctor` that a receiver accepts our signature and refuses callbacks without one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from http import HTTPStatus
from uuid import uuid4

from ourvidz import __version__
from ourvidz.callbacks import signing
from ourvidz.callbacks.target import Target
from ourvidz.cli.checks import NETWORK_TIMEOUT_S, Check, failed, ok, skipped
from ourvidz.net.client import HttpClient, HttpResponse, RequestFailure
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal, reveal_all

JOB_ID = "ourvidz-doctor"
STATUS = "ping"
"""No status of a job: a receiver that reads it has nothing to do."""
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_UNREADABLE = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What receivers may answer that know no such status."""


def check_signatures(settings: Settings) -> Check:
    """Send a document that is no callback to the default receiver: signed, then without signature and key.

    The first must not be refused, the second must be. A receiver that verifies signatures before it reads the
    document answers both questions, and does nothing else.
    """
    name, url = "signatures", settings.default_callback_url
    secrets = (settings.callback_secrets, settings.webhook_secrets, settings.supabase_service_key)
    if url is None:
        return skipped(name, "callbacks go to the inbox of `ourvidz up`")
    if not any(secrets):
        reason = "there is no secret: callbacks are not signed"
        if settings.profile == "production":
            return failed(name, reason, "set JOB_CALLBACK_SECRET here and at the receiver")
        return skipped(name, reason)
    signed = _post(settings, url, signed=True)
    if isinstance(signed, RequestFailure):
        return failed(name, f"{url}: {signed.reason}", "see the check of callbacks")
    if signed.status in _REFUSED:
        fix = "set the same JOB_CALLBACK_SECRET, OURVIDZ_WEBHOOK_SECRET and service key at the receiver"
        return failed(name, f"{url} refuses our signature (HTTP {signed.status})", fix)
    if signed.status == HTTPStatus.NOT_FOUND or not 200 <= signed.status < 500 or 300 <= signed.status < 400:
        fix = "deploy the receiver there (deploy/receiver), or correct SUPABASE_URL or OURVIDZ_CALLBACK_URL"
        return failed(name, f"{url} answers a signed document with HTTP {signed.status}", fix)
    unsigned = _post(settings, url, signed=False)
    if isinstance(unsigned, RequestFailure):
        return failed(name, f"{url}: {unsigned.reason}", "see the check of callbacks")
    if unsigned.status in _REFUSED:
        return ok(name, f"{url} accepts our signature and refuses a document without one")
    if unsigned.status in _UNREADABLE and signed.status == unsigned.status:
        reason = f"{url} reads documents before it verifies signatures (HTTP {signed.status}):"
        return ok(name, f"{reason} whether it does cannot be seen from here")
    reason = (
        f"{url} accepts a document that nobody signed (HTTP {unsigned.status}): anybody can report results"
    )
    return failed(name, reason, "let the receiver verify the signature, as deploy/receiver does")


def _post(settings: Settings, url: str, *, signed: bool) -> HttpResponse | RequestFailure:
    """Send the document as a callback is sent, with the same client rules and headers."""
    document = {"job_id": JOB_ID, "status": STATUS, "sequence": 0, "assets": [], "metadata": {}}
    body = json.dumps(document).encode()
    target = Target(
        settings.default_callback_url, __version__, service_key=reveal(settings.supabase_service_key)
    )
    headers = {"Content-Type": "application/json", "User-Agent": f"ourvidz/{__version__}"}
    if signed:
        headers |= signing.signed_headers(
            body,
            event_id=f"{JOB_ID}-{uuid4().hex}",
            at=datetime.now(UTC),
            service_key=target.service_key_for(url),
            callback_secrets=reveal_all(settings.callback_secrets),
            webhook_secrets=reveal_all(settings.webhook_secrets),
        )
    client = HttpClient(timeout_s=NETWORK_TIMEOUT_S, connector=EgressPolicy(target.hosts))
    return client.post(url, body=body, headers=headers)
