"""The ledger on one Redis server: every verb that changes something is one script, so one round trip.

Why scripts, and which key holds what: docs/decisions/0004-ledger-in-redis.md.
"""

from __future__ import annotations

from collections.abc import Callable

from ourvidz.ledger.attempt_folders import AttemptFolderOperations
from ourvidz.ledger.base import DAY_S, LedgerOptions
from ourvidz.ledger.connection import Connection
from ourvidz.ledger.devices import DeviceOperations
from ourvidz.ledger.duties import DutyOperations
from ourvidz.ledger.enhancement import EnhancementOperations
from ourvidz.ledger.imports import ImportOperations
from ourvidz.ledger.inspection import InspectionOperations
from ourvidz.ledger.jobs import JobOperations
from ourvidz.ledger.outbox import OutboxOperations
from ourvidz.ledger.streams import StreamOperations
from ourvidz.ledger.usage import UsageOperations
from ourvidz.ledger.vitals import VitalsOperations
from ourvidz.ledger.workers import WorkerOperations
from ourvidz.records.keys import Keys


class Ledger(
    JobOperations,
    AttemptFolderOperations,
    EnhancementOperations,
    InspectionOperations,
    OutboxOperations,
    StreamOperations,
    WorkerOperations,
    DutyOperations,
    VitalsOperations,
    ImportOperations,
    UsageOperations,
    DeviceOperations,
):
    """The ledger on one Redis or Valkey server (not a cluster). Every verb is atomic and safe to send twice.

    Times are Unix seconds of the ledger's time, which follows the server's clock but does not go back: hosts
    with wrong clocks agree on leases, and setting the server's clock postpones no deadline by much. `clock`
    replaces the server's. Calls wait up to `PATIENCE_S` for a server that is away, `step`,
    `renew_enhancement` and `ping` under a second; then they raise `WorkerUnavailable`. Threads may share an
    instance.

    `replica_acks`: a job counts as registered when so many replicas of the server have it.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "ourvidz:",
        clock: Callable[[], float] | None = None,
        presence_s: float = 15.0,
        retention_s: float = 7 * DAY_S,
        retry_window_s: float = DAY_S,
        document_limit: int = 64 * 1024,
        replica_acks: int = 0,
    ) -> None:
        super().__init__(
            Connection(url, prefix=prefix, clock=clock, replica_acks=replica_acks),
            Keys(prefix),
            LedgerOptions(presence_s, retention_s, retry_window_s, document_limit),
        )

    @property
    def url(self) -> str:
        """The URL that the ledger was opened with. It may contain a password."""
        return self._connection.url

    def now(self) -> float:
        """The ledger's time: Unix seconds."""
        return self._connection.now()

    def ping(self) -> None:
        """Raise `WorkerUnavailable` within a second when the server cannot be reached."""
        self._connection.ping()

    def close(self) -> None:
        """Close the idle connections. Safe to call twice; a later call opens new ones."""
        self._connection.close()
