"""A message broker for sweeps that are measured."""

from __future__ import annotations

from typing import Any


class StillBroker:
    """A broker that holds a message of every job, so that a sweep has nothing to do."""

    def publish(self, record: Any) -> bool:  # noqa: ARG002
        """Publish nothing."""
        return True

    def deliver(self, job_id: str) -> None:
        """Deliver nothing."""

    def wake(self, queue: str) -> None:
        """Wake nobody."""

    def waiting_messages(self, queue: str) -> int:  # noqa: ARG002
        """Some."""
        return 1

    def deliveries_waiting(self) -> int:
        """Some, so that none is dispatched."""
        return 1

    def trim_deliveries(self, limit: int) -> int:  # noqa: ARG002
        """Trim nothing."""
        return 0
