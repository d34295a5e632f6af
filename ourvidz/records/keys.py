"""The names of the keys under which the ledger stores what it knows."""

from __future__ import annotations

from dataclasses import dataclass


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
    def ready(self) -> str:
        """List: jobs whose oldest event is due and that no io process has taken, with its callback URL."""
        return f"{self.prefix}ready"

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

    def result(self, result_key: str) -> str:
        """String: the id of the last job that completed with the result of this key."""
        return f"{self.prefix}result:{result_key}"

    def gpu_usage(self, day: int) -> str:
        """Hash: the GPU usage of a day, counted from 1970, by user, job type and quantity."""
        return f"{self.prefix}gpu_usage:{day}"

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
    def devices(self) -> str:
        """Set: the devices whose memory was granted, until nobody has measured them for an hour."""
        return f"{self.prefix}devices"

    @property
    def pinned(self) -> str:
        """Hash: '1' for a pinned part, '0' for one that is not, whatever the settings say."""
        return f"{self.prefix}pinned"

    @property
    def paused(self) -> str:
        """Set: the paused queues."""
        return f"{self.prefix}paused"
