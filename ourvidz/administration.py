"""What operators ask of the whole installation, over HTTP or as a job: a name in, plain data out.

It needs the ledger and the broker, and no worker but for what a worker alone can do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.record import Worker
from ourvidz.prompts import encoders
from ourvidz.wiring import control


def administer(operation: str) -> dict[str, Any]:
    """Carry out an operation. `InvalidParameters` names those there are; `WorkerUnavailable` without a
    ledger."""
    known = OPERATIONS.get(operation)
    if known is None:
        rule = f"one of {', '.join(OPERATIONS)}"
        message = f"operation must be {rule}, not {operation!r}."
        raise InvalidParameters(message, field="operation", rule=rule, value=operation)
    return known()


def status() -> dict[str, Any]:
    """Queues and workers."""
    return queues() | workers()


def queues() -> dict[str, Any]:
    """How many jobs wait in each queue, whether it is paused, and how many workers are at work for it."""
    ledger = control.current().ledger
    paused, here = ledger.paused_queues(), [worker.queue for worker in _here()]
    return {
        "queues": {
            queue: {
                "depth": ledger.queue_depth(queue),
                "paused": queue in paused,
                "workers": here.count(queue),
            }
            for queue in QUEUES.values()
        }
    }


def workers() -> dict[str, Any]:
    """Everybody who was seen in the last day."""
    return {"workers": [_seen(worker) for worker in control.current().ledger.workers()]}


def models() -> dict[str, Any]:
    """What each worker said of its models when it had loaded them."""
    return {
        "models": [
            {"worker": worker.id, "name": name, "info": info}
            for worker in _here()
            for name, info in worker.detail.get("info", {}).items()
        ]
    }


def flush_caches() -> dict[str, Any]:
    """Forget what this process keeps of tokenizers, and ask every worker that holds models to give back the
    memory it keeps for later. Each does that after its job; `asked` are those whose message was sent."""
    encoders.read_encoders.cache_clear()
    holders = [worker.id for worker in _here() if worker.family in QUEUES]
    return {"flushed": ["tokenizers"], "asked": [each for each in holders if dispatch.flush(each)]}


OPERATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    operation.__name__: operation for operation in (status, queues, workers, models, flush_caches)
}


def _here() -> list[Worker]:
    return [worker for worker in control.current().ledger.workers() if worker.state != "offline"]


def _seen(worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.id,
        "family": worker.family,
        "queue": worker.queue,
        "host": worker.host,
        "pid": worker.pid,
        "gpu": worker.gpu,
        "state": worker.state,
        "draining": worker.draining,
        "models": list(worker.models),
        "version": worker.version,
        "started_at": worker.started_at,
        "seen_at": worker.seen_at,
    }
