"""The broker's queues as lists: their lengths, and the removal of what nobody will consume."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from celery.utils.nodenames import worker_direct

from ourvidz.app import app as celery_app

CONNECT_RETRIES = 2
"""How often a connection to the broker is tried again: the keeper must not wait for ever."""


@contextmanager
def open_channel() -> Iterator[Any]:
    """A channel of the broker. Raises one of `BROKER_ERRORS` when it cannot be reached."""
    with celery_app.pool.acquire(block=True) as connection:
        connection.ensure_connection(
            max_retries=CONNECT_RETRIES, interval_start=0, interval_step=0.2, interval_max=0.5
        )
        yield connection.default_channel


def waiting_messages(queue: str) -> int:
    """Return how many messages of a queue are in the broker and not yet received by a worker."""
    with open_channel() as channel:
        return int(channel.queue_declare(queue).message_count)


def clear(queue: str) -> int:
    """Drop all messages of a queue. Returns how many there were."""
    with open_channel() as channel:
        return int(channel.queue_purge(queue))


def remove_worker_queues(known: Collection[str]) -> int:
    """Delete the direct queues of all workers but the `known` ones. Returns their number.

    Celery leaves one behind for each host name that a worker ever had.
    """
    with open_channel() as channel:
        exchange = worker_direct("").exchange.name
        try:
            table = channel.get_table(exchange)
        except KeyError:
            return 0
        absent = [routing_key for routing_key, _, _ in table if routing_key not in known]
        for worker_id in absent:
            queue = worker_direct(worker_id).bind(channel)
            # Kombu deletes only what its process has declared.
            queue.declare()
            queue.delete()
        return len(absent)
