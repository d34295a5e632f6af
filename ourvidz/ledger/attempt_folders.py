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
        running = self._running_tokens(list(dict.fromkeys(job_id for job_id, _, _ in entries)))
        return [entry for entry in entries if running[entry[0]] != entry[1]]

    def _running_tokens(self, job_ids: list[str]) -> dict[str, str | None]:
        """The token of the claim under which each of these jobs is processed; None for one that is not."""

        def read() -> list[tuple[str | None, str | None]]:
            pipeline = self._connection.client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hmget(self._keys.job(job_id), "status", "token")
            return list(pipeline.execute())

        rows = self._connection.with_retries(read) if job_ids else []
        return {
            job_id: token if status == "processing" else None
            for job_id, (status, token) in zip(job_ids, rows, strict=True)
        }


def _split(member: str) -> tuple[str, str, str]:
    job_id, token, folder = member.split(" ", 2)
    return job_id, token, folder
