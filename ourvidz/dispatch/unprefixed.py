"""Messages under broker keys without a prefix, as an earlier release stores and consumes them.

While processes of both releases run, messages are moved to where the workers of their queue look for them.
The sweep would publish most of them again, later; a payload that a client of the earlier release sent to a
task by name is in no ledger yet, and would be lost.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ourvidz.celery_settings import (
    CALLBACKS_QUEUE,
    DELIVER_TASK,
    ENHANCE_TASK,
    GENERATION_TASKS,
    PRIORITY_STEPS,
)
from ourvidz.dispatch.messages import is_message
from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.connection import translated_errors
from ourvidz.ledger.store import Ledger
from ourvidz.redis_clients import open_client
from ourvidz.wiring import control

BEAT_QUEUE, SWEEP_TASK = "maintenance", "ourvidz.maintenance.sweep"
"""The messages that triggered sweeps in releases with a beat process. Nobody consumes them."""
QUEUE_NAMES = (*QUEUES.values(), CALLBACKS_QUEUE, BEAT_QUEUE)
SEPARATOR = "\x06\x16"
"""What Kombu puts between a queue's name and a priority."""
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"
"""Kombu's messages that a worker received and has not acknowledged: a hash, and a sorted set by time."""
BATCH = 500
"""Messages of one list that one call looks at."""
TIMEOUT_S = 5.0

# KEYS: from, to. ARGV: the message, '1' to keep it. A message that another process has taken stays taken.
MOVE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
if ARGV[2] == '1' then redis.call('RPUSH', KEYS[2], ARGV[1]) end
return 1
"""
# KEYS: unacked, unacked_index, to. ARGV: delivery tag, the message, '1' to keep it.
RESTORE = """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
if ARGV[3] == '1' then redis.call('RPUSH', KEYS[3], ARGV[2]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class _Message:
    """The parts of a Kombu message that tell whose it is."""

    queue: str
    priority: int
    task: str
    argument: Any


@dataclass(slots=True)
class Adopted:
    """The numbers of messages that one call moved and dropped."""

    moved: int = 0
    dropped: int = 0

    def count(self, number: int, keep: bool) -> None:
        """Add messages that were moved, or dropped (`keep` false)."""
        if keep:
            self.moved += number
        else:
            self.dropped += number


def adopt_unprefixed_messages(*, checkpoint: Callable[[], None] = lambda: None) -> Adopted:
    """Move the messages of this installation from keys without a prefix to its own keys.

    If all online workers of a queue are of the earlier release, its messages are moved the other way; a queue
    with workers of both is left alone. Messages are moved in order and put in front of newer ones.
    Unacknowledged ones are moved after the visibility timeout, as Kombu would. Messages that trigger sweeps
    are dropped. Messages of other applications, and of jobs that this ledger does not know, stay where they
    are.

    `checkpoint` is called between batches, and what it raises ends the call. Raises `WorkerUnavailable` when
    the server cannot be reached.
    """
    settings, ledger = control.current().settings, control.current().ledger
    consumed = {(worker.queue, worker.broker_prefix) for worker in ledger.online_workers()}
    old = [queue for queue in QUEUE_NAMES if (queue, "") in consumed]
    adopted = Adopted()
    with (
        translated_errors(),
        open_client(
            settings.redis_url, connect_s=TIMEOUT_S, answer_s=TIMEOUT_S, decode_responses=False
        ) as client,
    ):
        lists = [key_of(name, priority) for name in QUEUE_NAMES for priority in PRIORITY_STEPS]
        if not old and not client.exists(*lists, UNACKED):
            return adopted
        for queue in QUEUE_NAMES:
            if queue in old and (queue, settings.broker_prefix) in consumed:
                continue
            source, target = (settings.broker_prefix, "") if queue in old else ("", settings.broker_prefix)
            for key in (key_of(queue, priority) for priority in PRIORITY_STEPS):
                while _move_batch(client, ledger, source + key, target + key, adopted):
                    checkpoint()
        _adopt_unacknowledged(
            client, ledger, settings.broker_prefix, adopted, older_than_s=settings.visibility_timeout_s
        )
    return adopted


def key_of(queue: str, priority: int) -> str:
    """Return the name of the list in which Kombu keeps the messages of a queue at one priority."""
    return f"{queue}{SEPARATOR}{priority}" if priority else queue


def _move_batch(client: Any, ledger: Ledger, source: str, target: str, adopted: Adopted) -> bool:
    """Move messages of one list, the newest first: it is received last. Returns whether there were any."""
    if client.type(source) != b"list":
        return False
    move = client.register_script(MOVE)
    moved = False
    for raw in client.lrange(source, 0, BATCH - 1):
        message = _parse(raw)
        if message is not None and _is_ours(message, ledger):
            keep = message.task != SWEEP_TASK
            adopted.count(move(keys=[source, target], args=[raw, int(keep)]), keep)
            moved = True
    return moved


def _adopt_unacknowledged(
    client: Any, ledger: Ledger, prefix: str, adopted: Adopted, *, older_than_s: float
) -> None:
    if client.type(UNACKED_INDEX) != b"zset":
        return
    before = client.time()[0] - older_than_s
    restore = client.register_script(RESTORE)
    for tag in client.zrangebyscore(UNACKED_INDEX, "-inf", before, start=0, num=BATCH):
        raw = client.hget(UNACKED, tag)
        message = _parse(raw, unacknowledged=True)
        if message is None or not _is_ours(message, ledger):
            continue
        keep = message.task != SWEEP_TASK
        to = prefix + key_of(message.queue, _step_of(message.priority))
        body = json.dumps(json.loads(raw)[0])
        adopted.count(restore(keys=[UNACKED, UNACKED_INDEX, to], args=[tag, body, int(keep)]), keep)


def _is_ours(message: _Message, ledger: Ledger) -> bool:
    """Whether a message belongs to this installation: to one of its tasks, and to a job of its ledger."""
    if message.queue not in QUEUE_NAMES:
        return False
    argument = message.argument
    if message.task == SWEEP_TASK:
        return True
    if message.task == DELIVER_TASK:
        return isinstance(argument, str) and ledger.exists(argument)
    if message.task in GENERATION_TASKS or message.task == ENHANCE_TASK:
        return not is_message(argument) or ledger.exists(argument["id"])
    return False


def _step_of(priority: int) -> int:
    return max(step for step in PRIORITY_STEPS if step <= max(priority, 0))


def _parse(raw: bytes | None, *, unacknowledged: bool = False) -> _Message | None:
    """Return the parts of a message as Kombu stores it, None for anything else that stands in a list."""
    try:
        document = json.loads(raw or b"")
        if unacknowledged:
            document = document[0]
        properties, body = document["properties"], document["body"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        arguments = json.loads(body)[0]
        return _Message(
            queue=properties["delivery_info"]["routing_key"],
            priority=int(properties.get("priority") or 0),
            task=document["headers"]["task"],
            argument=arguments[0] if arguments else None,
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
