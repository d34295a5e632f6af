"""What a check of the ledger finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Code = Literal[
    "dangling", "orphan", "index", "document", "lifetime", "event", "counter", "unreadable", "quarantine",
    "message",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be. `subject` is a job id, an event id or the name of a queue."""

    code: Code
    subject: str
    detail: str
    mended: bool = False
