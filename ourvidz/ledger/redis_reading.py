"""Reading jobs back from Redis, one at a time, by page, and live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from ourvidz.jobs.job import Job, load_job
from ourvidz.ledger.codec import load_item, load_record
from ourvidz.ledger.paging import SCAN_LIMIT, checked_after, dump_cursor, load_cursor, wanted
from ourvidz.ledger.record import FINISHED, RECORD_VERSION, Page, Record, StreamItem
from ourvidz.ledger.redis_keys import Keys
from ourvidz.ledger.redis_link import FOLLOW_S, Link, ask_patiently

BATCH = 100


class RedisReading:
    """The verbs that change nothing."""

    _link: Link
    _keys: Keys

    def get(self, job_id: str) -> Record | None:
        fields = self._link.ask(lambda: self._link.client.hgetall(self._keys.job(job_id)))
        return load_record(job_id, fields) if fields else None

    def job(self, job_id: str) -> Job | None:
        document = self._link.ask(lambda: self._link.client.get(self._keys.document(job_id)))
        return load_job(document) if document else None

    def records(self, job_ids: Iterable[str]) -> list[Record]:
        """The records of these jobs in this order, without those that are gone, and without those of a newer
        version: they are a newer process's to look after."""
        ids = list(job_ids)
        found = zip(ids, self._link.hashes(self._keys.job(each) for each in ids), strict=True)
        return [
            load_record(job_id, fields)
            for job_id, fields in found
            if fields and int(fields["v"]) <= RECORD_VERSION
        ]

    def page(
        self,
        *,
        user_id: str | None = None,
        type: str | None = None,
        status: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        index, below = self._keys.index(user_id), load_cursor(cursor)
        kept: list[Record] = []
        last, scanned = 0, 0
        while scanned < SCAN_LIMIT:
            batch = self._index_batch(index, below)
            records = {record.job_id: record for record in self.records(job_id for job_id, _ in batch)}
            self._drop_dangling(index, [job_id for job_id, _ in batch if job_id not in records])
            for job_id, place in batch:
                below, scanned = place, scanned + 1
                record = records.get(job_id)
                if record is None or not wanted(record, type, status):
                    continue
                if len(kept) == limit:
                    return Page(kept, dump_cursor(last))
                kept.append(record)
                last = place
            if len(batch) < BATCH:
                return Page(kept, None)
        return Page(kept, dump_cursor(below or 0))

    def _index_batch(self, index: str, below: int | None) -> list[tuple[str, int]]:
        top = "+inf" if below is None else f"({below}"
        found = self._link.ask(
            lambda: self._link.client.zrevrangebyscore(
                index, top, "-inf", start=0, num=BATCH, withscores=True
            )
        )
        return [(job_id, int(score)) for job_id, score in found]

    def _drop_dangling(self, index: str, job_ids: list[str]) -> None:
        """A record that expired by itself leaves its place in the index behind."""
        if job_ids:
            self._link.ask(lambda: self._link.client.zrem(index, *job_ids))

    def position(self, job_id: str) -> int | None:
        rank = self._link.call("position", job_id)
        return None if rank is None else int(rank)

    def depth(self, queue: str) -> int:
        return int(self._link.ask(lambda: self._link.client.zcard(self._keys.queued(queue))))

    def counts(self) -> dict[str, int]:
        found = self._link.ask(lambda: self._link.client.hgetall(self._keys.counters))
        return {name: int(number) for name, number in found.items()}

    def stream(self, job_id: str, *, after: str = "0", limit: int = 500) -> list[StreamItem]:
        start = f"({checked_after(after)}"
        found = self._link.ask(
            lambda: self._link.client.xrange(self._keys.stream(job_id), min=start, count=limit)
        )
        return [load_item(item_id, fields) for item_id, fields in found]

    async def follow(self, job_id: str, *, after: str = "0") -> AsyncIterator[StreamItem]:
        last = checked_after(after)
        async with self._link.following() as client:
            block_ms: int | None = None
            while True:
                # Asked before reading: whatever it has finished with is then in the stream.
                status, run = await ask_patiently(
                    lambda: client.hmget(self._keys.job(job_id), "status", "run")
                )
                items = await self._read_on(client, job_id, last, block_ms)
                for item in items:
                    last = item.id
                    yield item
                    if item.kind == "done" and await self._is_last(client, job_id, item):
                        return
                if not items and (run is None or status in FINISHED):
                    return
                block_ms = None if items else int(FOLLOW_S * 1000)

    async def _read_on(self, client: Any, job_id: str, after: str, block_ms: int | None) -> list[StreamItem]:
        name = self._keys.stream(job_id)
        answer = await ask_patiently(lambda: client.xread({name: after}, count=200, block=block_ms))
        return [load_item(item_id, fields) for _, found in answer for item_id, fields in found]

    async def _is_last(self, client: Any, job_id: str, done: StreamItem) -> bool:
        """Whether no later run was opened after this end."""
        run = await ask_patiently(lambda: client.hget(self._keys.job(job_id), "run"))
        return run is None or int(run) == done.data["run"]
