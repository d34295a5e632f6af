"""Storage folders of running attempts: what is left of an attempt that died is found here and removed."""

from __future__ import annotations

from ourvidz.ledger.queries import Queries


class AttemptFolderOperations(Queries):
    """Verbs on the sorted set of the folders that attempts store their files in, by age. `claim` and
    `step` add to it, `end` removes the empty ones."""

    def untrack_attempt_folder(self, job_id: str, token: str, folder: str) -> None:
        """Note that the folder is gone. Safe to send twice."""
        name, member = self._keys.attempt_folders, f"{job_id} {token} {folder}"
        self._connection.with_retries(lambda: self._connection.client.zrem(name, member))

    def dead_attempt_folders(self, limit: int = 1000) -> list[tuple[str, str, str]]:
        """Job id, token and folder of attempts that do not run any more, among the `limit` oldest."""
        name = self._keys.attempt_folders
        members = self._connection.with_retries(lambda: self._connection.client.zrange(name, 0, limit - 1))
        entries = [_split(member) for member in members]
        rows = dict(self._read_rows(dict.fromkeys(job_id for job_id, _, _ in entries)))
        return [entry for entry in entries if not _is_running(rows[entry[0]], token=entry[1])]


def _split(member: str) -> tuple[str, str, str]:
    job_id, token, folder = member.split(" ", 2)
    return job_id, token, folder


def _is_running(fields: dict[str, str], *, token: str) -> bool:
    """Whether a record, empty for none, is being processed under a token."""
    return fields.get("status") == "processing" and fields.get("token") == token
