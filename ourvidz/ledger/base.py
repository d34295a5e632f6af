"""What all parts of the ledger share: key names, retention times, the connection."""

from __future__ import annotations

from dataclasses import dataclass

from ourvidz.ledger.connection import Connection
from ourvidz.records.keys import Keys

DAY_S = 86400.0
STREAM_TTL_S = 3600.0
"""Lifetime of a stream after the end of its run."""
DELIVERED_TTL_S = DAY_S
"""How long a delivered terminal event is kept for operators."""
WORKER_TTL_S = DAY_S
"""How long a worker is listed after its last heartbeat."""


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    """What an operator can set.

    `presence_s`: a worker without a heartbeat for longer is offline. `retention_s`: how long an ended job is
    kept. `retry_window_s`: how long an oversized document of a failed job is kept. `document_limit`: bytes
    above which a document is oversized.
    """

    presence_s: float = 15.0
    retention_s: float = 7 * DAY_S
    retry_window_s: float = DAY_S
    document_limit: int = 64 * 1024

    @property
    def record_ttl_s(self) -> int:
        """Lifetime of the record of an ended job in Redis, should no sweep purge it."""
        return int(self.retention_s + DAY_S)


class LedgerBase:
    """Connection, key names and options of one ledger."""

    def __init__(self, connection: Connection, keys: Keys, options: LedgerOptions) -> None:
        self._connection = self.connection = connection  # also for packages with scripts of their own
        self._keys = keys
        self._options = options
