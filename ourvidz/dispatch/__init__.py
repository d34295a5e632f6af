"""Submission of jobs, and the messages that go to the broker.

Owns: submitting, recording and publishing jobs; cancel, retry, delete; pausing queues, draining workers.
Speaks: payloads in, records out; messages that carry an id. What a task does is in `tasks`.
"""

from ourvidz.dispatch.lifecycle import cancel, delete, retry
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
from ourvidz.dispatch.submission import parse_payload, submit, submit_all
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
    "cancel",
    "delete",
    "deliver",
    "drain",
    "flush",
    "hand_back",
    "is_message",
    "message",
    "noted",
    "parse_payload",
    "pause",
    "publish",
    "resume",
    "retry",
    "submit",
    "submit_all",
    "task_id",
    "time_limit_s",
    "waiting_messages",
    "wake",
]
