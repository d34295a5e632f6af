"""The quarantine: jobs that are set aside because this release cannot read or handle them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import ResponseError

from ourvidz.ledger.maintenance import MaintenanceOperations
from ourvidz.records.codec import load_event, pairs
from ourvidz.records.record import Record
from ourvidz.records.validation import UnreadableRecord, describe_error, load_valid_record


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A job that is set aside. `checked_at`: when it was last found unreadable (Unix seconds)."""

    job_id: str
    reason: str
    checked_at: float


class QuarantineOperations(MaintenanceOperations):
    """Verbs on jobs that may be damaged. A quarantined job is untouched, but in no index that sweeps walk."""

    def quarantine(self, job_id: str, *, index: str, reason: str) -> None:
        """Take a job out of an index, for a minute at least. `reason` is a sentence about it."""
        self._connection.run_script("quarantine", job_id, index, reason)

    def quarantined(self, limit: int = 100, *, older_than_s: float = 0.0) -> list[Quarantined]:
        """Quarantined jobs that were last checked longer ago than this, longest ago first."""
        rows = self._connection.run_script("quarantined", older_than_s, limit)
        return [Quarantined(job_id, reason, float(at)) for job_id, at, reason in rows]

    def quarantine_size(self) -> int:
        """The number of quarantined jobs."""
        name = self._keys.quarantine
        return int(self._connection.with_retries(lambda: self._connection.client.zcard(name)))

    def end_quarantine(self, job_id: str) -> bool:
        """Put a quarantined job back into the indexes. False, and it is forgotten, when its record is gone.
        Raises `UnreadableRecord` if its record names no place."""
        return self._change_place("end_quarantine", job_id)

    def reindex(self, job_id: str, index: str) -> bool:
        """Correct the place of a job. Returns whether it was removed from this index. Raises
        `UnreadableRecord` if its record names no place."""
        return self._change_place("reindex", job_id, index)

    def _change_place(self, verb: str, *args: str) -> bool:
        try:
            return bool(self._connection.run_script(verb, *args))
        except ResponseError:
            raise UnreadableRecord("its place in an index cannot be written") from None

    def read_each(self, job_ids: Sequence[str]) -> list[Record | UnreadableRecord | None]:
        """The record of each of these jobs: None where there is none, the reason where this release cannot
        handle it."""

        def read() -> list[dict[str, str] | Exception]:
            pipeline = self._connection.client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hgetall(self._keys.job(job_id))
            answers = pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                    raise answer
            return list(answers)

        answers = self._connection.with_retries(read) if job_ids else []
        return [_load(job_id, answer) for job_id, answer in zip(job_ids, answers, strict=True)]

    def unreadable_event(self, job_id: str) -> str | None:
        """Why the next event of a job cannot be read, None when it can or there is none."""
        try:
            answer = self._connection.run_script("next_event", job_id)
        except ResponseError:
            return "its events cannot be read"
        if not answer:
            return None
        event_id, fields = answer
        try:
            load_event(event_id, pairs(fields))
        except (KeyError, TypeError, ValueError) as error:
            return f"its event {event_id} cannot be decoded: {describe_error(error)}"
        return None


def _load(job_id: str, answer: dict[str, str] | Exception) -> Record | UnreadableRecord | None:
    """The record in an answer, or the reason why this release cannot handle it."""
    if isinstance(answer, Exception):
        return UnreadableRecord("its key holds no record")
    try:
        return load_valid_record(job_id, answer) if answer else None
    except UnreadableRecord as error:
        return error
