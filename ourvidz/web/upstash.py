"""The two Upstash REST forms that callers in the field use: the lists they push to are the job queues."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters, OurvidzError
from ourvidz.jobs.job import Job
from ourvidz.jobs.schema import submission_schema
from ourvidz.web import audit, door
from ourvidz.web.body import parse_json, read_json
from ourvidz.web.operations import known_queue
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["upstash"])

AT_MOST = 100
"""How many jobs one push may carry."""
PUSH: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": AT_MOST,
                    "items": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": submission_schema(),
                    },
                }
            }
        },
    }
}


class Depth(BaseModel):
    """How many jobs wait, in Upstash's form."""

    result: int


@router.post("/rpush/{queue}", responses=documented(401, 403, 409, 413, 422, 503), openapi_extra=PUSH)
async def rpush(request: Request, queue: str) -> Depth:  # noqa: ARG001 - the catalog decides
    """Queue the jobs in the body. Which queue a job waits in is the catalog's to say, not the path's; the
    depth is the last job's queue's."""
    return await run_in_threadpool(_push, request, await read_json(request))


def _push(request: Request, elements: object) -> Depth:
    # All are judged before the first is queued.
    jobs, attendance = _jobs(elements), request.app.state.attendance
    door.look(jobs, attendance)
    told = audit.entry(request.scope)
    for job in jobs:
        told.job_id, told.user_id, told.type = job.id, job.user_id, job.type
        door.take(job, attendance)
    return Depth(result=control.current().ledger.depth(jobs[-1].queue))


@router.get("/llen/{queue}", responses=documented(401, 403, 404, 422, 503))
def llen(queue: str) -> Depth:
    """How many jobs wait in a queue."""
    return Depth(result=control.current().ledger.depth(known_queue(queue)))


def _jobs(elements: object) -> list[Job]:
    if not isinstance(elements, list) or not 1 <= len(elements) <= AT_MOST:
        raise InvalidParameters(
            "The body must be a list of jobs.", rule=f"1 to {AT_MOST} JSON strings", value=elements
        )
    return [_job(element, None if len(elements) == 1 else index) for index, element in enumerate(elements)]


def _job(element: object, index: int | None) -> Job:
    place = None if index is None else f"[{index}]"
    try:
        return dispatch.admit(parse_json(element) if isinstance(element, str) else element)
    except OurvidzError as refused:
        if place is not None:
            refused.field = f"{place}.{refused.field}" if refused.field else place
        raise
