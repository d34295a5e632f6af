"""The queue names a path may carry."""

from __future__ import annotations

from ourvidz.errors import NotFound
from ourvidz.jobs.catalog import QUEUES


def known(queue: str) -> str:
    """The queue itself. `NotFound` when there is none of this name."""
    if queue not in QUEUES.values():
        raise NotFound(
            "There is no queue of this name.", field="queue", rule=", ".join(QUEUES.values()), value=queue
        )
    return queue
