"""The route that makes tokens for browsers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.fields import IDENTIFIER, Fields
from ourvidz.jobs.ranges import Range
from ourvidz.keys.tokens import DEFAULT_LIFETIME_S, MAX_LIFETIME_S
from ourvidz.web import access, audit
from ourvidz.web.auth import caller_of
from ourvidz.web.body import read_json
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["jobs"])

LIFETIME = Range(1, MAX_LIFETIME_S, whole=True)
ID = {"type": ["string", "null"], "pattern": f"^{IDENTIFIER.pattern}$"}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "description": "`job_id` or `user_id`, not both.",
                    "properties": {
                        "job_id": ID,
                        "user_id": ID,
                        "expires_in_s": {
                            "type": ["integer", "null"],
                            "minimum": 1,
                            "maximum": MAX_LIFETIME_S,
                            "default": DEFAULT_LIFETIME_S,
                        },
                    },
                }
            }
        },
    }
}


class IssuedToken(BaseModel):
    """A token for `GET /jobs/{id}/events` and `GET /assets/…`, as `?token=` or as a bearer token."""

    token: str
    expires_at: datetime
    job_id: str | None
    user_id: str | None


@router.post(
    "/tokens", status_code=201, responses=documented(401, 403, 404, 413, 422, 503), openapi_extra=BODY
)
async def issue(request: Request, response: Response) -> IssuedToken:
    """Make a token with which a browser reads the events and files of one job, or of one user, for at most an
    hour. It ends earlier when the key that it was made with is revoked."""
    response.headers["Cache-Control"] = "no-store"
    return await run_in_threadpool(_issue, request, Fields(await read_json(request)))


def _issue(request: Request, fields: Fields) -> IssuedToken:
    job_id, user_id = fields.identifier("job_id"), fields.identifier("user_id")
    lifetime_s = fields.integer("expires_in_s", within=LIFETIME) or DEFAULT_LIFETIME_S
    if (job_id is None) == (user_id is None):
        rule = "job_id or user_id, not both"
        raise InvalidParameters("A token is for a job or for a user.", field="job_id", rule=rule)
    caller, owner = caller_of(request), user_id
    if job_id is not None:
        record = access.find_record(request, job_id)
        audit.entry(request.scope).set_job(record)
        owner = record.user_id
    else:
        audit.entry(request.scope).user_id = user_id
        access.check_user(caller, user_id)
    token, grant = control.current().tokens.make(
        key_id=caller.key_id, lifetime_s=lifetime_s, job_id=job_id, user_id=owner
    )
    expires_at = datetime.fromtimestamp(grant.expires_at, UTC)
    return IssuedToken(token=token, expires_at=expires_at, job_id=job_id, user_id=user_id)
