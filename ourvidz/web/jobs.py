"""Routes for jobs: submit, list, read, follow, cancel, retry, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import lookup
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.jobs.schema import submission_schema
from ourvidz.records.record import Status
from ourvidz.web import access, audit, events, sse, views
from ourvidz.web.auth import caller_of, still_allowed
from ourvidz.web.body import read_json
from ourvidz.web.documents import Accepted, CallbackState, Deleted, JobPage, JobState
from ourvidz.web.problems import documented
from ourvidz.web.rate_limits import limits_of, open_streams
from ourvidz.wiring import control

router = APIRouter(tags=["jobs"])
events_router = APIRouter(tags=["jobs"])
"""The route that a browser reads with a token."""

JobId = Annotated[str, Path(alias="id", description="The caller's own id.")]
SUBMISSION_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": submission_schema()}}}
}
EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "description": "Position to resume after, as Last-Event-ID."},
        "event": {"enum": ["state", "progress", "preview", "token", "gap", "done"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"itemSchema": EVENT}}},
    204: {"description": "The last event of a finished job was received already."},
}


@router.post(
    "/jobs",
    status_code=202,
    response_model=Accepted,
    responses={
        200: {
            "model": JobState,
            "description": "Submitted before, or answered from an earlier result.",
        },
        **documented(401, 403, 409, 413, 422, 503),
    },
    openapi_extra=SUBMISSION_BODY,
)
async def submit(request: Request) -> Response:
    """Queue a job. Submitting the same job under the same id again returns its current state, and so does a
    job with `config.reuse` that was answered from an earlier result."""
    payload = await read_json(request)
    return await run_in_threadpool(_submit, request, payload)


def _submit(request: Request, payload: object) -> Response:
    app = control.current()
    job = access.parse_job(request, payload)
    audit.entry(request.scope).set_job(job)
    limits = limits_of(request)
    admission = dispatch.submit(job, limits=limits.for_job)
    limits.note(admission.allowances)
    if not admission.created or admission.record.finished:
        return _json(views.state(admission.record, app), 200)
    return _json(views.accepted(admission.record, admission.position), 202, {"Location": f"/jobs/{job.id}"})


@router.get("/jobs", responses=documented(401, 403, 422, 503))
def page(
    request: Request,
    user_id: Annotated[str | None, Query(pattern=rf"^({IDENTIFIER.pattern})?$")] = None,
    type: Annotated[str | None, Query(description="A job type or one of its aliases.")] = None,
    status: Status | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """List jobs, newest first."""
    app = control.current()
    row = lookup(type) if type else None
    if type and row is None:
        raise InvalidParameters(f"type: {type!r} is no job type", field="type", rule="a job type", value=type)
    user_id = access.own_user(request, user_id)
    if user_id and not caller_of(request).sees_user(user_id):
        return JobPage(items=[], cursor=None)
    listed = app.ledger.page(
        user_id=user_id,
        type=row.name if row else None,
        status=status,
        cursor=cursor or None,
        limit=limit,
    )
    return JobPage(items=views.summaries(listed.records, app), cursor=listed.cursor)


@router.get("/job/{id}", include_in_schema=False)
@router.get("/jobs/{id}", responses=documented(401, 403, 404, 422, 503))
def show(request: Request, job_id: JobId) -> JobState:
    """Read the current state of a job."""
    return views.state(access.find_record(request, job_id), control.current())


@events_router.get(
    "/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={**EVENTS, **documented(401, 403, 404, 422, 503)},
)
async def follow(
    request: Request,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """Follow the events of a job as they happen: state, progress, preview, token, gap, done."""
    app = control.current()
    after = sse.parse_last_event_id(last_event_id)
    record = await run_in_threadpool(access.find_record, request, job_id)
    if await run_in_threadpool(events.is_fully_read, app.ledger, record, after):
        # An EventSource reconnects after the end of a stream, but not after a 204.
        return Response(status_code=204)
    open_streams.open(request)
    items = app.followers.follow(job_id, after=after)
    is_allowed = still_allowed(request)
    return sse.EventStreamResponse(events.stream(app.ledger, job_id, items, is_allowed=is_allowed))


@router.get("/jobs/{id}/callback", responses=documented(401, 403, 404, 422, 503))
def callback(request: Request, job_id: JobId) -> CallbackState:
    """Read whether the callback of a job's end was delivered."""
    return views.callback_state(access.find_record(request, job_id), control.current())


@router.post("/jobs/{id}/cancel", responses=documented(401, 403, 404, 409, 422, 503))
def cancel(request: Request, job_id: JobId) -> JobState:
    """Cancel a job: a queued one never runs, a running one stops before its next step."""
    app = control.current()
    audit.entry(request.scope).set_job(access.find_record(request, job_id))
    return views.state(dispatch.cancel(job_id), app)


@router.post("/jobs/{id}/retry", status_code=202, responses=documented(401, 403, 404, 409, 422, 503))
def retry(request: Request, job_id: JobId) -> Accepted:
    """Run a failed or cancelled job again under its id."""
    audit.entry(request.scope).set_job(access.find_record(request, job_id))
    record = dispatch.retry(job_id, limits=limits_of(request).for_job)
    return views.accepted(record, control.current().ledger.queue_position(job_id))


@router.delete("/jobs/{id}", responses=documented(401, 403, 404, 409, 422, 503))
def delete(
    request: Request,
    job_id: JobId,
    force: Annotated[bool, Query(description="Cancel callbacks that are still pending.")] = False,
) -> Deleted:
    """Delete a finished job and its assets."""
    audit.entry(request.scope).set_job(access.find_record(request, job_id))
    dispatch.delete(job_id, force=force)
    return Deleted(job_id=job_id)


def _json(document: Accepted | JobState, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(document.model_dump_json(), status, headers, media_type="application/json")
