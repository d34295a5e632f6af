"""Reads the demand of a queue from the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ourvidz.autoscaling.policy import Demand
from ourvidz.jobs.catalog import CATALOG, QUEUES, lookup
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record

SAMPLE_SIZE = 200
"""Queued jobs that are read for the estimate; those behind them count with their mean."""
ENHANCEMENT_S = CATALOG["chat_enhance"].expected_s[1]


def read_demand(ledger: Ledger, queue: str) -> Demand:
    """Return the demand of a queue. Raises `WorkerUnavailable` when the ledger cannot be reached."""
    depth = ledger.queue_depth(queue)
    sample = ledger.queued(queue, SAMPLE_SIZE)
    processing = ledger.records(ledger.index_members("leases"))
    running = [record for record in processing if record.queue == queue and record.status == "processing"]
    busy = {record.worker_id for record in running if record.worker_id}
    busy |= {
        worker.id for worker in ledger.online_workers() if worker.queue == queue and worker.state == "busy"
    }
    enhancements = _enhancements(ledger) if queue == QUEUES["chat"] else 0
    queued_s = depth * _mean_s(sample, queue) + enhancements * ENHANCEMENT_S
    return Demand(
        queued=depth + enhancements,
        queued_s=round(queued_s, 3),
        running=len(running),
        running_s=round(sum(remaining_s(record) for record in running), 3),
        busy=len(busy),
        idle_s=ledger.vitals().queues[queue].last_claim_s,
        paused=queue in ledger.paused_queues(),
    )


def remaining_s(record: Record) -> float:
    """Estimated seconds that a job still needs: its expected time, less its progress.

    The expected time is the caller's, but not more than the time limit of its type: one payload cannot ask
    for a fleet.
    """
    row = lookup(record.type)
    longest_s = row.expected_s[1] if row else _longest_s(record.queue)
    limit_s = row.time_limit_s if row else longest_s
    expected = record.callback_metadata.get("expected_time")
    is_number = isinstance(expected, int | float) and math.isfinite(expected) and expected > 0
    expected_s = min(float(expected), limit_s) if is_number and expected is not None else longest_s
    return expected_s * (100 - min(max(record.progress, 0.0), 100.0)) / 100


def _enhancements(ledger: Ledger) -> int:
    """The number of queued jobs whose prompt a chat worker is to enhance first: they are in another queue."""
    queue = QUEUES["wan"]
    sample = ledger.queued(queue, SAMPLE_SIZE)
    share = sum(record.enhancement == "wanted" for record in sample) / max(1, len(sample))
    return math.ceil(share * ledger.queue_depth(queue)) if share else 0


def _mean_s(sample: Iterable[Record], queue: str) -> float:
    """The mean of what these queued jobs need. The longest type's time where none can be read, as a newer
    release may have written them."""
    seconds = [remaining_s(record) for record in sample]
    return sum(seconds) / len(seconds) if seconds else _longest_s(queue)


def _longest_s(queue: str) -> float:
    """The longest expected time of the types of a queue."""
    return max(row.expected_s[1] for row in CATALOG.values() if row.queue == queue)
