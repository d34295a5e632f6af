"""What all parts of the ledger share: key names, retention times, the connection."""

from __future__ import annotations

from dataclasses import dataclass

from ourvidz.ledger.connection import Connection
from ourvidz.records.record import Claim, Record

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


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of the keys that Python reads without a script; `scripts/lib/` builds the same names.

    A job or user id may hold any character: a key that ends in one begins with a word that no other key
    begins with.
    """

    prefix: str

    def job(self, job_id: str) -> str:
        """Hash: the record of a job."""
        return f"{self.prefix}job:{job_id}"

    def document(self, job_id: str) -> str:
        """String: the job itself, as JSON."""
        return f"{self.prefix}doc:{job_id}"

    def stream(self, job_id: str) -> str:
        """Stream: the live items of a job."""
        return f"{self.prefix}stream:{job_id}"

    def queued(self, queue: str) -> str:
        """Sorted set: the queued jobs of a queue by priority and order."""
        return f"{self.prefix}queued:{queue}"

    def claimed(self, queue: str) -> str:
        """Hash: the last claim of a queue by priority, `<priority>:at` and `<priority>:order`."""
        return f"{self.prefix}claimed:{queue}"

    def index(self, user_id: str | None) -> str:
        """Sorted set: the jobs of a user, or all jobs, by order."""
        return f"{self.prefix}index:all" if user_id is None else f"{self.prefix}index:user:{user_id}"

    def event(self, event_id: str) -> str:
        """Hash: one outbox event."""
        return f"{self.prefix}event:{event_id}"

    def events(self, state: str) -> str:
        """Sorted set: the outbox events of one delivery state by time."""
        return f"{self.prefix}letters:{state}"

    @property
    def quarantine(self) -> str:
        """Sorted set: the jobs that cannot be read by the time of their last check."""
        return f"{self.prefix}quarantine"

    def importing(self, list_name: str) -> str:
        """List: the entry of a caller's list that is being imported."""
        return f"{self.prefix}importing:{list_name}"

    @property
    def refused_imports(self) -> str:
        """List: the entries of callers' lists that were refused, each a JSON document with the reason."""
        return f"{self.prefix}refused_imports"

    @property
    def attempt_folders(self) -> str:
        """Sorted set: the storage folders of attempts by the time of their first file."""
        return f"{self.prefix}attempt_folders"

    @property
    def leases(self) -> str:
        """Sorted set: the processed jobs by the end of their lease."""
        return f"{self.prefix}leases"

    @property
    def counters(self) -> str:
        """Hash: counters by dotted name."""
        return f"{self.prefix}counters"

    @property
    def queue_seen(self) -> str:
        """Hash: the last heartbeat of any worker by queue."""
        return f"{self.prefix}queue_seen"

    @property
    def paused(self) -> str:
        """Set: the paused queues."""
        return f"{self.prefix}paused"


def claim_identity(job: Claim | Record) -> tuple[str, int, int, str]:
    """What the scripts recognise a claim by: job id, run, fence, and the token, '' for a queued job."""
    return job.job_id, job.run, job.fence, job.token or ""


class LedgerBase:
    """Connection, key names and options of one ledger."""

    def __init__(self, connection: Connection, keys: Keys, options: LedgerOptions) -> None:
        self._connection = connection
        self._keys = keys
        self._options = options
