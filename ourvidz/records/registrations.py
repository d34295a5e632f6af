"""The registration of a worker at the caller's backend, as its heartbeat contains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

RegistrationKind = Literal["registered", "updated", "gone"]
"""What happened to a record: it is new, it changed or is sent again, its last worker has left."""
REGISTRATION_KINDS: frozenset[str] = frozenset(get_args(RegistrationKind))


@dataclass(frozen=True, slots=True)
class Registration:
    """What a worker wants to be known as.

    `worker_type` and `worker_url` name the record: workers of one type behind one URL share it.
    `callback_url` is the function of the backend that keeps it. `document` is what the function gets, as
    JSON, without what depends on the event.
    """

    worker_type: str
    worker_url: str
    callback_url: str
    document: str
