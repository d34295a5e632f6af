"""Routes for operators: administration, pausing queues, draining workers."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz import administration, dispatch
from ourvidz.errors import NotFound
from ourvidz.jobs.catalog import QUEUES
from ourvidz.jobs.fields import Fields
from ourvidz.jobs.job import AdminJob
from ourvidz.jobs.json_text import parse_json
from ourvidz.web import access, audit
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["operations"], responses=documented(401, 403, 404, 422, 503))
assets_router = APIRouter(tags=["operations"], responses=documented(401, 403, 404, 422, 503))
"""The route that a key bound to users may call too."""

ADMIN_TYPE = "admin_utilities"
ADMIN_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "operation": {"enum": [*administration.OPERATIONS, "", None], "default": "status"}
                    },
                }
            }
        }
    }
}


class QueueState(BaseModel):
    """Whether a queue is paused, and how many jobs wait in it."""

    queue: str
    paused: bool
    depth: int


class WorkerState(BaseModel):
    """Whether a worker is draining: it finishes its job and claims no more."""

    worker: str
    draining: bool


class DeletedAssets(BaseModel):
    """A storage key under which nothing is stored any more."""

    key: str
    deleted: Literal[True] = True


class Administered(BaseModel):
    """The result of an operation; which fields `result` has depends on the operation."""

    success: Literal[True] = True
    operation: str
    result: dict[str, Any]


@router.post("/admin", responses=documented(413), openapi_extra=ADMIN_BODY)
async def admin(request: Request) -> Administered:
    """Run an operation of `admin_utilities` in the shim, also while the chat worker is down."""
    body = await request.body()
    return await run_in_threadpool(_administer, request, parse_json(body) if body else {})


def _administer(request: Request, payload: object) -> Administered:
    """Parse the payload as an admin job, run its operation and return the result."""
    Fields(payload)  # Raises for what is no JSON object.
    assert isinstance(payload, dict)
    job = dispatch.parse_payload({**payload, "id": uuid.uuid4().hex, "type": ADMIN_TYPE})
    assert isinstance(job, AdminJob)
    audit.entry(request.scope).type = ADMIN_TYPE
    result = administration.administer(job.operation)
    return Administered(operation=job.operation, result=result)


@router.post("/queues/{queue}/pause")
def pause(queue: str) -> QueueState:
    """Pause a queue: running jobs finish, new ones are accepted and wait."""
    dispatch.pause(check_queue(queue))
    return _queue_state(queue)


@router.post("/queues/{queue}/resume")
def resume(queue: str) -> QueueState:
    """Resume a paused queue."""
    dispatch.resume(check_queue(queue))
    return _queue_state(queue)


@router.post("/workers/{id}/drain")
def drain(id: str) -> WorkerState:
    """Drain a worker: it finishes its job and claims no more."""
    dispatch.drain(id)
    return WorkerState(worker=id, draining=True)


@router.post("/workers/{id}/resume")
def undrain(id: str) -> WorkerState:
    """Let a drained worker claim jobs again."""
    dispatch.drain(id, draining=False)
    return WorkerState(worker=id, draining=False)


@assets_router.delete("/assets/{bucket}/{key:path}", responses=documented(409))
def delete_assets(request: Request, bucket: str, key: str) -> DeletedAssets:
    """Delete a stored file, or all files of a job by the key of its folder, also of a job whose record is
    gone."""
    name = f"{bucket}/{key}"
    if not access.may_see_file(request, name):
        raise NotFound("There is no such asset.", field="key", value=name)
    dispatch.delete_assets(name)
    return DeletedAssets(key=name)


def _queue_state(queue: str) -> QueueState:
    ledger = control.current().ledger
    return QueueState(queue=queue, paused=queue in ledger.paused_queues(), depth=ledger.queue_depth(queue))


def check_queue(name: str) -> str:
    """`name` itself, when it is a queue of the catalog. Raises `NotFound`."""
    if name not in QUEUES.values():
        raise NotFound(
            "There is no queue of this name.", field="queue", rule=", ".join(QUEUES.values()), value=name
        )
    return name
