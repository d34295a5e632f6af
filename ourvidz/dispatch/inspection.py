"""Reading the messages of a queue without taking them."""

from __future__ import annotations

import base64
import json
from typing import Any

from ourvidz.dispatch.queues import open_channel
from ourvidz.recovery.check import Messages


def read_messages(queue: str) -> Messages:
    """Return the jobs of the messages that wait in a queue or that a worker has not finished."""
    with open_channel() as channel:
        # Kombu's client puts the prefix in front of the keys of its own commands only, and these are others.
        prefix = channel.global_keyprefix
        with channel.conn_or_acquire() as client:
            waiting = [
                entry
                for priority in channel.priority_steps
                for entry in client.lrange(prefix + channel._q_for_pri(queue, priority), 0, -1)
            ]
            # Each entry is [message, exchange, routing key]; the routing key is the queue.
            received = [json.loads(entry) for entry in client.hvals(prefix + channel.unacked_key)]
    job_ids, foreign = set(), 0
    for document in [*map(_parse, waiting), *(entry[0] for entry in received if entry[2] == queue)]:
        job_id = _job_id(document)
        if job_id is None:
            foreign += 1
        else:
            job_ids.add(job_id)
    return Messages(frozenset(job_ids), foreign)


def _parse(entry: bytes | str) -> Any:
    try:
        return json.loads(entry)
    except ValueError:
        return None


def _job_id(document: Any) -> str | None:
    """The job id in the first argument of a message, a message of ours or a whole payload; None for an entry
    that is no Celery message."""
    try:
        body = document["body"]
        if document["properties"]["body_encoding"] == "base64":
            body = base64.b64decode(body)
        return str(json.loads(body)[0][0]["id"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
