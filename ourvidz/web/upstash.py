"""The two Upstash REST routes that existing callers use, `RPUSH` and `LLEN`; the lists are the job queues."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters, OurvidzError
from ourvidz.jobs.job import Job
from ourvidz.jobs.json_text import parse_json
from ourvidz.jobs.schema import submission_schema
from ourvidz.web import access, audit
from ourvidz.web.body import read_json
from ourvidz.web.operations import check_queue
from ourvidz.web.problems import documented
from ourvidz.web.rate_limits import limits_of
from ourvidz.wiring import control

router = APIRouter(tags=["upstash"])

MAX_JOBS = 100
"""Most jobs of one push."""
PUSH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_JOBS,
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
    """Number of queued jobs, in Upstash's form."""

    result: int


@router.post("/rpush/{queue}", responses=documented(401, 403, 409, 413, 422, 503), openapi_extra=PUSH_BODY)
async def rpush(request: Request, queue: str) -> Depth:  # noqa: ARG001 - the catalog decides
    """Queue the jobs in the body. The catalog decides each job's queue, not the path; the result is the depth
    of the last job's queue."""
    return await run_in_threadpool(_push, request, await read_json(request))


def _push(request: Request, elements: object) -> Depth:
    limits = limits_of(request)
    admissions = dispatch.submit_all(_jobs(request, elements), limits=limits.for_job)
    limits.note(admissions[-1].allowances)
    last = admissions[-1].record
    audit.entry(request.scope).set_job(last)
    return Depth(result=control.current().ledger.queue_depth(last.queue))


@router.get("/llen/{queue}", responses=documented(401, 403, 404, 422, 503))
def llen(queue: str) -> Depth:
    """Read how many jobs are queued."""
    return Depth(result=control.current().ledger.queue_depth(check_queue(queue)))


def _jobs(request: Request, elements: object) -> list[Job]:
    """Parse the elements of a push. The `field` of an error begins with the index of its element."""
    if not isinstance(elements, list) or not 1 <= len(elements) <= MAX_JOBS:
        raise InvalidParameters(
            "The body must be a list of jobs.", rule=f"1 to {MAX_JOBS} JSON strings", value=elements
        )
    return [
        _job(request, element, None if len(elements) == 1 else index)
        for index, element in enumerate(elements)
    ]


def _job(request: Request, element: object, index: int | None) -> Job:
    try:
        payload = parse_json(element) if isinstance(element, str) else element
        return access.parse_job(request, payload)
    except OurvidzError as error:
        if index is not None:
            error.field = f"[{index}].{error.field}" if error.field else f"[{index}]"
        raise
