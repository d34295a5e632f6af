"""The door and the way to the broker.

Owns: admitting, recording and publishing jobs; cancel, retry, delete; pausing and draining.
Speaks: payloads in, records out; messages that carry an id. What a task does is told in `tasks`.
"""

from ourvidz.dispatch.door import admit, cancel, delete, enqueue, retry, submit, taken
from ourvidz.dispatch.messages import (
    NOBODY,
    REDACTED,
    deliver,
    is_message,
    message,
    noted,
    publish,
    task_id,
    time_limit_s,
)
from ourvidz.dispatch.workers import (
    Broker,
    drain,
    flush,
    hand_back,
    pause,
    resume,
    waiting_messages,
    wake,
)

__all__ = [
    "NOBODY",
    "REDACTED",
    "Broker",
    "admit",
    "cancel",
    "delete",
    "deliver",
    "drain",
    "enqueue",
    "flush",
    "hand_back",
    "is_message",
    "message",
    "noted",
    "pause",
    "publish",
    "resume",
    "retry",
    "submit",
    "taken",
    "task_id",
    "time_limit_s",
    "waiting_messages",
    "wake",
]
