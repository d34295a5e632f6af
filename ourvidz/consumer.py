"""Celery's consumer in a worker's parent, which publishes the events of tasks in batches.

Celery publishes each event on its own and waits for the answer, between receiving a message and handing it to
the child: a job then starts and ends later for the sake of whoever watches. Flower reads batches too.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

FLUSH_INTERVAL_S = 0.1
"""Longest time that an event of a task waits for others."""


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's consumer with batches of task events; the setting `worker_consumer` names it."""

    _flush_planned_for = 0.0

    def on_send_event_buffered(self) -> None:
        """Plan to publish what is buffered, unless that is planned. Called by Celery for every event.

        A plan whose time has passed does not count: a lost connection may have dropped it.
        """
        now = time.monotonic()
        if self.hub and now >= self._flush_planned_for:
            self._flush_planned_for = now + FLUSH_INTERVAL_S
            self.hub.call_later(FLUSH_INTERVAL_S, self._flush_events)

    def shutdown(self) -> Any:
        """Publish what is buffered, and close the connections. Called by Celery when the pool has stopped."""
        # Nobody waits for events, and the server may be away: the worker stops all the same.
        with suppress(Exception):
            self._flush_events()
        return super().shutdown()
