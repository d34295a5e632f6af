"""Builds the documents that register workers at the caller's backend. Pure.

A record that is gone is sent without a `worker_url`: the functions in the field know no such request, and one
with a URL would register it again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ourvidz.records.record import OutboxEvent


def build(event: OutboxEvent) -> dict[str, Any]:
    """Build the document of one registration event, with its time as ISO 8601 in UTC.

    `sequence` grows over all events of all workers: a receiver ignores an event of a worker type and URL
    whose sequence is lower than one that it knows.
    """
    made = dict(event.callback_metadata)
    timestamp = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds")
    document = {
        **made,
        "timestamp": timestamp.replace("+00:00", "Z"),
        "status": event.kind,
        "sequence": event.sequence,
        "worker_id": event.worker_id,
    }
    if event.kind == "gone":
        document |= {"worker_url": None, "former_worker_url": made.get("worker_url")}
    return document
