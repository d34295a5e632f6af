"""Messages as the broker's lists contain them, encoded without a connection.

A script of the ledger writes such an entry together with the record: one call, and no moment in which there
is one without the other.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

from celery.canvas import Signature
from kombu.connection import Connection
from kombu.transport import virtual
from kombu.transport.redis import Channel as RedisChannel
from kombu.utils.json import dumps

from ourvidz.app import app as celery_app
from ourvidz.records.record import BrokerEntry
from ourvidz.sentinel_url import is_sentinel_url, parse_sentinel_url


def encode(signature: Signature) -> BrokerEntry:
    """Return the entry that publishing a signature would add to a list of the broker."""
    producer, channel = _recorder()
    # Workers declare their queues; nothing is bound to the exchange by this connection.
    signature.apply_async(producer=producer, retry=False, declare=())
    queue, message = channel.recorded.pop()
    options = celery_app.conf.broker_transport_options
    step = max(step for step in options["priority_steps"] if step <= message["properties"]["priority"])
    name = f"{queue}{RedisChannel.sep}{step}" if step else queue
    return BrokerEntry(list_name=options.get("global_keyprefix", "") + name, message=dumps(message))


def is_broker(ledger_url: str) -> bool:
    """Whether the broker's lists are in the ledger's database."""
    if is_sentinel_url(ledger_url):
        ledger_url = parse_sentinel_url(ledger_url).broker_url
    return ledger_url == celery_app.conf.broker_url and not celery_app.conf.task_always_eager


class _RecordingChannel(virtual.Channel):
    """A channel that keeps what is published, as the Redis channel would encode it."""

    do_restore = False

    @cached_property
    def recorded(self) -> list[tuple[str, dict[str, Any]]]:
        """Queue and message of everything that was published."""
        return []

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.recorded.append((queue, message))


class _RecordingTransport(virtual.Transport):
    """A transport whose channels keep what is published."""

    Channel = _RecordingChannel


_threads = threading.local()


def _recorder() -> tuple[Any, _RecordingChannel]:
    """Return this thread's producer, and the channel that it publishes to."""
    if not hasattr(_threads, "recorder"):
        channel = Connection(transport=_RecordingTransport).channel()
        _threads.recorder = celery_app.amqp.Producer(channel), channel
    producer, channel = _threads.recorder
    return producer, channel
