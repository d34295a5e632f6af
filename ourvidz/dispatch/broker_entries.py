"""Messages as the broker's lists contain them, encoded without a connection.

A script of the ledger writes such an entry together with the record: one call, and no moment in which there
is one without the other.
"""

from __future__ import annotations

import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4

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


@dataclass(frozen=True, slots=True)
class EntryTemplate:
    """The entries of messages that differ in one id. Encoding each by Celery takes ten times longer, for
    which a caller waits."""

    list_name: str
    text: str
    """The message with `id_mark` in place of the id, `body_mark` of its body and `tag_mark` of its tag."""
    body: str
    id_mark: str
    body_mark: str
    tag_mark: str

    def entry(self, message_id: str) -> BrokerEntry:
        """The entry of the message with this id."""
        quoted_mark, quoted_id = json.dumps(self.id_mark), json.dumps(message_id)
        body = b64encode(self.body.replace(quoted_mark, quoted_id).encode()).decode()
        text = self.text.replace(self.tag_mark, str(uuid4())).replace(self.body_mark, body)
        return BrokerEntry(list_name=self.list_name, message=text.replace(quoted_mark, quoted_id))


def template(make_signature: Callable[[str], Signature]) -> EntryTemplate:
    """Return the template of the signatures that a function makes for different ids, as `encode` encodes
    them."""
    # Drawn at random, so that no id contains one.
    id_mark, body_mark, tag_mark = (uuid4().hex for _ in range(3))
    entry = encode(make_signature(id_mark))
    message = json.loads(entry.message)
    body = b64decode(message["body"]).decode()
    message["body"], message["properties"]["delivery_tag"] = body_mark, tag_mark
    return EntryTemplate(entry.list_name, dumps(message), body, id_mark, body_mark, tag_mark)


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
