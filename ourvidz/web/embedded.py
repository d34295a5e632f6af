"""Routes of the embedded mode, in place of a backend: a callback receiver, and its inbox."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz.callbacks.inbox import MAX_DELIVERIES, Inbox
from ourvidz.callbacks.signing import Verification, verify
from ourvidz.errors import InvalidParameters, Unauthorized
from ourvidz.jobs.catalog import lookup
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.jobs.json_text import parse_json
from ourvidz.service_key import key_headers
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal, reveal_all
from ourvidz.web import audit
from ourvidz.web.auth import caller_of
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["embedded"])
receiver = APIRouter(tags=["embedded"])


class Delivery(BaseModel):
    """One received callback. `verified`: every configured signature was valid."""

    received_at: datetime
    headers: dict[str, str]
    payload: dict[str, Any]
    verified: bool


class Deliveries(BaseModel):
    """Received callbacks, oldest first."""

    items: list[Delivery]


class Debug(BaseModel):
    """How the receiver read a callback."""

    job_id: str
    jobStatus: str | None
    jobType: str | None
    format: str | None
    quality: Literal["fast", "high"] | None
    isSDXL: bool
    isEnhanced: bool
    assetsProcessed: int
    processingTimestamp: datetime


class Receipt(BaseModel):
    """The receiver's response."""

    success: Literal[True] = True
    message: str
    debug: Debug


@router.get("/inbox", responses=documented(401, 403, 422))
def inbox(
    request: Request,
    job_id: Annotated[str | None, Query(pattern=rf"^({IDENTIFIER.pattern})?$")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_DELIVERIES)] = 1000,
) -> Deliveries:
    """Read the last received callbacks, of one job or of all, oldest first."""
    stored: Inbox = request.app.state.inbox
    items = stored.last(job_id=job_id or None, limit=limit)
    caller = caller_of(request)
    if caller.bound:
        named = {str(item["payload"]["job_id"]) for item in items}
        records = control.current().ledger.records(named)
        # From when on: an earlier job under the same id, deleted since, may have been another user's.
        since = {
            record.job_id: datetime.fromtimestamp(record.created_at, UTC)
            for record in records
            if caller.sees_job(record.job_id, record.user_id)
        }
        items = [item for item in items if _is_since(item, since.get(item["payload"]["job_id"]))]
    return Deliveries.model_validate({"items": items})


def _is_since(item: dict[str, Any], created_at: datetime | None) -> bool:
    return created_at is not None and datetime.fromisoformat(item["received_at"]) >= created_at


@receiver.post(
    "/functions/v1/job-callback",
    responses=documented(401, 413, 422),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    },
)
async def receive(request: Request) -> Receipt:
    """Receive a callback. One with a webhook signature is stored once, however often it is delivered."""
    body = await request.body()
    settings = control.current().settings
    verified = _check_sender(body, request, settings)
    audit.entry(request.scope).caller = "callback"
    payload = parse_json(body)
    now = datetime.now(UTC)
    receipt = _receipt(payload, now)
    audit.entry(request.scope).job_id = receipt.debug.job_id
    stored: Inbox = request.app.state.inbox
    await run_in_threadpool(
        stored.add,
        payload,
        request.headers,
        received_at=now.isoformat(),
        verified=verified,
        # Without a secret anybody can use any id.
        webhook_id=request.headers.get("webhook-id") if settings.webhook_secrets else None,
    )
    return receipt


def _check_sender(body: bytes, request: Request, settings: Settings) -> bool:
    """Check every configured signature and key of a delivery; False when none is configured.

    Raises `Unauthorized` when one is missing or wrong.
    """
    signatures: Verification = verify(
        body,
        request.headers,
        callback_secrets=reveal_all(settings.callback_secrets),
        webhook_secrets=reveal_all(settings.webhook_secrets),
    )
    checks = []
    if settings.callback_secrets:
        checks.append(signatures.callback == "valid")
    if settings.webhook_secrets:
        checks.append(signatures.webhook == "valid")
    if settings.supabase_service_key:
        name, expected = next(iter(key_headers(reveal(settings.supabase_service_key)).items()))
        checks.append(hmac.compare_digest(expected.encode(), request.headers.get(name, "").encode("latin-1")))
    if not all(checks):
        raise Unauthorized("This callback does not prove its sender.")
    return bool(checks)


def _receipt(payload: object, received_at: datetime) -> Receipt:
    """The response to a callback. Raises `InvalidParameters` for a payload without a valid job id."""
    job_id = payload.get("job_id") if isinstance(payload, dict) else None
    if not isinstance(payload, dict) or not isinstance(job_id, str) or not IDENTIFIER.fullmatch(job_id):
        raise InvalidParameters(
            "A callback names its job.", field="job_id", rule="the id of a job", value=job_id
        )
    metadata, assets, status = (payload.get(name) for name in ("metadata", "assets", "status"))
    type_name = metadata.get("job_type") if isinstance(metadata, dict) else None
    row = lookup(type_name) if isinstance(type_name, str) else None
    return Receipt(
        message="Callback received.",
        debug=Debug(
            job_id=job_id,
            jobStatus=status if isinstance(status, str) else None,
            jobType=row.name if row else None,
            format=row.content_type if row else None,
            quality=row.quality_tier if row else None,
            isSDXL=row is not None and row.family == "sdxl",
            isEnhanced=row is not None and row.enhance,
            assetsProcessed=len(assets) if isinstance(assets, list) else 0,
            processingTimestamp=received_at,
        ),
    )
