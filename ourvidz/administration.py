"""Administrative operations on the whole installation, for the HTTP route and for administration jobs.

They need the ledger and the broker; only flushing caches needs a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import QUEUES
from ourvidz.prompts import encoders
from ourvidz.records.record import Worker
from ourvidz.wiring import control


def administer(operation: str) -> dict[str, Any]:
    """Carry out an operation by name and return its result.

    Raises `InvalidParameters` with the names that exist, `WorkerUnavailable` when the ledger cannot be
    reached.
    """
    function = OPERATIONS.get(operation)
    if function is None:
        rule = f"one of {', '.join(OPERATIONS)}"
        message = f"operation must be {rule}, not {operation!r}."
        raise InvalidParameters(message, field="operation", rule=rule, value=operation)
    return function()


def status() -> dict[str, Any]:
    """Return the queues and the workers."""
    return queues() | workers()


def queues() -> dict[str, Any]:
    """Return each queue's number of queued jobs, whether it is paused, and its number of online workers."""
    ledger = control.current().ledger
    paused, worker_queues = ledger.paused_queues(), [worker.queue for worker in ledger.online_workers()]
    return {
        "queues": {
            queue: {
                "depth": ledger.queue_depth(queue),
                "paused": queue in paused,
                "workers": worker_queues.count(queue),
            }
            for queue in QUEUES.values()
        }
    }


def workers() -> dict[str, Any]:
    """Return all workers seen in the last day."""
    return {"workers": [_worker_row(worker) for worker in control.current().ledger.workers()]}


def models() -> dict[str, Any]:
    """Return the models of each online worker, as it described them after loading."""
    return {
        "models": [
            {"worker": worker.id, "name": name, "info": info}
            for worker in control.current().ledger.online_workers()
            for name, info in worker.model_infos.items()
        ]
    }


def flush_caches() -> dict[str, Any]:
    """Drop the tokenizers that this process caches, and tell every GPU worker to free its cached memory after
    its current job. `asked` lists the workers whose message was sent."""
    encoders.read_encoders.cache_clear()
    gpu_workers = [
        worker.id for worker in control.current().ledger.online_workers() if worker.family in QUEUES
    ]
    return {"flushed": ["tokenizers"], "asked": [each for each in gpu_workers if dispatch.flush(each)]}


OPERATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    operation.__name__: operation for operation in (status, queues, workers, models, flush_caches)
}


def _worker_row(worker: Worker) -> dict[str, Any]:
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
