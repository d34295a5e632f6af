"""Workers and paused queues."""

from __future__ import annotations

from ourvidz import log
from ourvidz.ledger.base import WORKER_TTL_S, LedgerBase
from ourvidz.records.codec import dump_worker, load_worker, pairs
from ourvidz.records.record import Worker

_log = log.get(__name__)


class WorkerOperations(LedgerBase):
    """Verbs about workers and queues. Draining and pausing last until they are revoked."""

    def heartbeat(self, worker: Worker) -> None:
        """Record a worker as it is now, seen now. A `failed` one claims nothing until a heartbeat in another
        state. Its queue counts as seen only by a worker that has loaded its models: one that dies while it
        loads them, and is started again for ever, serves nobody."""
        failed = worker.state == "failed"
        loading = failed or worker.state == "starting"
        row = (worker.id, worker.queue, dump_worker(worker), int(WORKER_TTL_S))
        self._connection.run_script("heartbeat", *row, int(loading), int(failed))

    def mark_offline(self, worker_id: str) -> None:
        """Mark a worker as offline until its next heartbeat."""
        self._connection.run_script("mark_offline", worker_id)

    def workers(self) -> list[Worker]:
        """All workers seen in the last day, longest silent first. Those without a heartbeat within the
        presence time are `offline`."""
        return self._read_workers(WORKER_TTL_S)[0]

    def online_workers(self, *, family: str | None = None) -> list[Worker]:
        """The workers that are not offline, draining ones among them; of one family."""
        return [
            worker
            for worker in self._read_workers(self._options.presence_s)[0]
            if worker.state != "offline" and family in (None, worker.family)
        ]

    def active_workers(self, *, queue: str | None = None, family: str | None = None) -> list[Worker]:
        """The workers that take new jobs: online, not failed, not draining, their queue not paused; of one
        queue or family."""
        workers, paused = self._read_workers(self._options.presence_s)
        return [
            worker
            for worker in workers
            if worker.state not in ("offline", "failed")
            and not worker.draining
            and worker.queue not in paused
            and queue in (None, worker.queue)
            and family in (None, worker.family)
        ]

    def _read_workers(self, within_s: float) -> tuple[list[Worker], list[str]]:
        """All workers seen within a time, and the paused queues. A heartbeat that this release cannot read is
        left out: what one worker sends must not hide the others.

        Hosts that come and go leave hundreds of workers a day, so those online are asked for by time."""
        now, paused, *rows = self._connection.run_script("workers", within_s)
        workers = [self._load(pairs(row), float(now)) for row in rows if row]
        return [worker for worker in workers if worker is not None], paused

    def _load(self, row: dict[str, str], now: float) -> Worker | None:
        try:
            seen_at = float(row["seen_at"])
            online = "left" not in row and now - seen_at <= self._options.presence_s
            return load_worker(row["data"], seen_at=seen_at, online=online, draining="draining" in row)
        except (KeyError, ValueError) as error:
            _log.warning("heartbeat_unreadable", reason=str(error))
            return None

    def update_registrations(self, *, refresh_s: float | None = None) -> int:
        """Add an event for each record of a worker that the caller's backend lacks or must forget, and for
        the newest of each type if it was last sent `refresh_s` ago. Returns how many."""
        args = (self._options.presence_s, refresh_s)
        return int(self._connection.run_script("update_registrations", *args))

    def queue_seen_at(self, queue: str) -> float | None:
        """Time of the last heartbeat of any worker of a queue; None when there was none."""
        seen = self._connection.with_retries(
            lambda: self._connection.client.hget(self._keys.queue_seen, queue)
        )
        return float(seen) if seen else None

    def set_draining(self, worker_id: str, draining: bool) -> bool:
        """Mark a worker as draining, or not: its claims are refused. False when it was never seen."""
        return bool(self._connection.run_script("set_draining", worker_id, int(draining)))

    def set_paused(self, queue: str, paused: bool) -> None:
        """Pause or resume a queue: claims of its jobs are refused while it is paused."""
        client = self._connection.client
        change = client.sadd if paused else client.srem
        self._connection.with_retries(lambda: change(self._keys.paused, queue))

    def paused_queues(self) -> frozenset[str]:
        """The paused queues."""
        return frozenset(
            self._connection.with_retries(lambda: self._connection.client.smembers(self._keys.paused))
        )
