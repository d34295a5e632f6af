"""Finding the words of queued jobs, written to Redis."""

from __future__ import annotations

from typing import Any

from ourvidz.jobs.job import load_job
from ourvidz.ledger.codec import dump_json, load_record, pairs
from ourvidz.ledger.record import Enhancement, Verdict
from ourvidz.ledger.redis_link import Link


class RedisEnhancing:
    """The enhancement verbs."""

    _link: Link

    def begin_enhancing(self, job_id: str, run: int, *, lease_s: float, token: str) -> Enhancement | None:
        won = self._link.call("begin_enhancing", job_id, run, lease_s, token)
        if won is None:
            return None
        fields, document = won
        return Enhancement(load_job(document), load_record(job_id, pairs(fields)), token)

    def keep_enhancing(self, held: Enhancement, *, lease_s: float) -> Verdict:
        known = (held.job_id, held.run, held.token)
        return Verdict(self._link.call("keep_enhancing", *known, lease_s, quick=True))

    def end_enhancing(self, held: Enhancement, *, wording: dict[str, Any]) -> bool:
        known = (held.job_id, held.run, held.token)
        return bool(self._link.call("end_enhancing", *known, dump_json(wording)))

    def give_up_enhancing(self, job_id: str, *, run: int, reason: str) -> bool:
        return bool(self._link.call("give_up_enhancing", job_id, run, dump_json({"reason": reason})))
