"""The two Upstash REST forms that callers in the field use: the lists they push to are the job queues."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters, OurvidzError
from ourvidz.jobs.schema import submission_schema
from ourvidz.web import audit
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
    admissions = dispatch.submit_all(_payloads(elements))
    last = admissions[-1].record
    audit.entry(request.scope).about(last)
    return Depth(result=control.current().ledger.depth(last.queue))


@router.get("/llen/{queue}", responses=documented(401, 403, 404, 422, 503))
def llen(queue: str) -> Depth:
    """How many jobs wait in a queue."""
    return Depth(result=control.current().ledger.depth(known_queue(queue)))


def _payloads(elements: object) -> list[object]:
    """Decode the elements of a push. `InvalidParameters` names the index of one that is not JSON."""
    if not isinstance(elements, list) or not 1 <= len(elements) <= AT_MOST:
        raise InvalidParameters(
            "The body must be a list of jobs.", rule=f"1 to {AT_MOST} JSON strings", value=elements
        )
    return [
        _payload(element, None if len(elements) == 1 else index) for index, element in enumerate(elements)
    ]


def _payload(element: object, index: int | None) -> object:
    try:
        return parse_json(element) if isinstance(element, str) else element
    except OurvidzError as refused:
        if index is not None:
            refused.field = f"[{index}].{refused.field}" if refused.field else f"[{index}]"
        raise
