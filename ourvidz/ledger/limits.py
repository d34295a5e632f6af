"""How long the ledger keeps what, and the sizes it works in. Seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass

DAY_S = 86400.0
STREAM_KEPT_S = 3600.0
"""How long a stream outlives the end of its run."""
STREAM_ITEMS = 500
LETTER_KEPT_S = DAY_S
"""How long a delivered terminal row is kept for operators."""
WORKER_KEPT_S = DAY_S


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator can set of them."""

    presence_s: float = 15.0
    retention_s: float = 7 * DAY_S
    retry_window_s: float = DAY_S
    document_limit: int = 64 * 1024

    @property
    def keep_s(self) -> int:
        """After this a finished job vanishes even when nobody purges."""
        return int(self.retention_s + DAY_S)
