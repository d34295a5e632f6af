"""Submission of jobs, and the messages that go to the broker.

Owns submitting, recording and publishing jobs; cancel, retry, delete; pausing queues, draining workers.
Handles payloads, records, and messages that carry an id; what a task does is in `tasks`.
"""

from ourvidz.dispatch.delivery_messages import serve_former_io
from ourvidz.dispatch.imports import import_lists
from ourvidz.dispatch.lifecycle import cancel, delete, delete_assets, resume_deletions, retry
from ourvidz.dispatch.messages import (
    BROKER_ERRORS,
    CHAT_QUEUE_PAUSED,
    HARD_LIMIT_FACTOR,
    NO_CHAT_WORKER,
    REDACTED,
    is_message,
    message,
    note_published,
    publish,
    task_id,
    time_limit_s,
)
from ourvidz.dispatch.queues import remove_worker_queues, waiting_messages
from ourvidz.dispatch.replay import receipt_of, replay
from ourvidz.dispatch.submission import parse_payload, submit, submit_all
from ourvidz.dispatch.unprefixed import adopt_unprefixed_messages
from ourvidz.dispatch.workers import (
    Broker,
    drain,
    flush,
    move_model,
    pause,
    request_load,
    requeue_held_jobs,
    resume,
    start_consuming,
    stop_consuming,
    wake,
)

__all__ = [
    "BROKER_ERRORS",
    "CHAT_QUEUE_PAUSED",
    "HARD_LIMIT_FACTOR",
    "NO_CHAT_WORKER",
    "REDACTED",
    "Broker",
    "adopt_unprefixed_messages",
    "cancel",
    "delete",
    "delete_assets",
    "drain",
    "flush",
    "import_lists",
    "is_message",
    "message",
    "move_model",
    "note_published",
    "parse_payload",
    "pause",
    "publish",
    "receipt_of",
    "remove_worker_queues",
    "replay",
    "request_load",
    "requeue_held_jobs",
    "resume",
    "resume_deletions",
    "retry",
    "serve_former_io",
    "start_consuming",
    "stop_consuming",
    "submit",
    "submit_all",
    "task_id",
    "time_limit_s",
    "waiting_messages",
    "wake",
]
