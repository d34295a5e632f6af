"""What operators do to queues and workers."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from ourvidz import dispatch
from ourvidz.web import queues
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["operations"], responses=documented(401, 403, 404, 422, 503))


class QueueState(BaseModel):
    """Whether a queue is paused, and how many jobs wait in it."""

    queue: str
    paused: bool
    depth: int


class WorkerState(BaseModel):
    """Whether a worker takes no more jobs."""

    worker: str
    draining: bool


@router.post("/queues/{queue}/pause")
def pause(queue: str) -> QueueState:
    """Stop taking jobs from a queue. Running jobs finish; new ones are accepted and wait."""
    dispatch.pause(queues.known(queue))
    return _queue(queue)


@router.post("/queues/{queue}/resume")
def resume(queue: str) -> QueueState:
    """Take jobs from a queue again."""
    dispatch.resume(queues.known(queue))
    return _queue(queue)


@router.post("/workers/{id}/drain")
def drain(id: str) -> WorkerState:
    """Let a worker finish its job and take no more."""
    dispatch.drain(id)
    return WorkerState(worker=id, draining=True)


@router.post("/workers/{id}/resume")
def undrain(id: str) -> WorkerState:
    """Let a drained worker take jobs again."""
    dispatch.drain(id, draining=False)
    return WorkerState(worker=id, draining=False)


def _queue(queue: str) -> QueueState:
    ledger = control.current().ledger
    return QueueState(queue=queue, paused=queue in ledger.paused(), depth=ledger.depth(queue))
