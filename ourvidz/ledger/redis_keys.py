"""The names of the ledger's keys, for what Python reads by itself.

The scripts build the same names in `prelude.lua`. A job or user id may hold any character: a key that
ends in one starts with a word that no other key starts with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Every key under one prefix."""

    prefix: str

    def job(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def document(self, job_id: str) -> str:
        return f"{self.prefix}doc:{job_id}"

    def stream(self, job_id: str) -> str:
        return f"{self.prefix}stream:{job_id}"

    def queued(self, queue: str) -> str:
        return f"{self.prefix}queued:{queue}"

    def claimed(self, queue: str) -> str:
        return f"{self.prefix}claimed:{queue}"

    def index(self, user_id: str | None) -> str:
        return f"{self.prefix}index:all" if user_id is None else f"{self.prefix}index:user:{user_id}"

    def event(self, event_id: str) -> str:
        return f"{self.prefix}event:{event_id}"

    def letters(self, state: str) -> str:
        return f"{self.prefix}letters:{state}"

    @property
    def leases(self) -> str:
        return f"{self.prefix}leases"

    @property
    def counters(self) -> str:
        return f"{self.prefix}counters"

    @property
    def queue_seen(self) -> str:
        return f"{self.prefix}queue_seen"

    @property
    def paused(self) -> str:
        return f"{self.prefix}paused"
