"""Finding the words of queued jobs, kept in memory."""

from __future__ import annotations

import json
from typing import Any

from ourvidz.jobs.job import load_job
from ourvidz.ledger.codec import dump_json
from ourvidz.ledger.memory_state import Entry, MemoryState
from ourvidz.ledger.record import ENHANCING, Enhancement, Verdict


class MemoryEnhancing(MemoryState):
    """The enhancement verbs."""

    def begin_enhancing(self, job_id: str, run: int, *, lease_s: float, token: str) -> Enhancement | None:
        with self._lock:
            entry, now = self._wanting(job_id, run), self.now()
            if entry is None or entry.record.cancel_requested or entry.document is None:
                return None
            if entry.enhancer != token and entry.enhancing_until > now:
                return None
            entry.enhancer, entry.enhancing_until = token, now + lease_s
            if entry.record.stage != ENHANCING:
                self._change(entry, stage=ENHANCING)
                self._state_item(entry, entry.record.attempt)
            return Enhancement(load_job(entry.document), entry.record, token)

    def keep_enhancing(self, held: Enhancement, *, lease_s: float) -> Verdict:
        with self._lock:
            entry = self._wanting(held.job_id, held.run)
            if entry is None or entry.enhancer != held.token:
                return Verdict.LOST
            entry.enhancing_until = self.now() + lease_s
            return Verdict.CANCEL if entry.record.cancel_requested else Verdict.CONTINUE

    def end_enhancing(self, held: Enhancement, *, wording: dict[str, Any]) -> bool:
        with self._lock:
            entry = self._wanting(held.job_id, held.run)
            if entry is None:
                return self._says(held.job_id, held.run, wording)
            if entry.enhancer != held.token:
                return False
            self._stop_enhancing(entry, wording)
            if entry.record.published_at is not None:
                # The generation's own message follows: to the sweep it is as fresh as a first one.
                self._change(entry, published_at=self.now())
            return True

    def give_up_enhancing(self, job_id: str, *, run: int, reason: str) -> bool:
        with self._lock:
            wording = {"reason": reason}
            entry = self._wanting(job_id, run)
            if entry is None:
                return self._says(job_id, run, wording)
            self._stop_enhancing(entry, wording)
            return True

    def _wanting(self, job_id: str, run: int) -> Entry | None:
        """The entry of a job whose words are still to be found."""
        entry = self._entries.get(job_id)
        if entry is None or (entry.record.status, entry.record.run) != ("queued", run):
            return None
        return entry if entry.record.enhancement == "wanted" else None

    def _says(self, job_id: str, run: int, wording: dict[str, Any]) -> bool:
        """Whether just this stands written: the same call came twice."""
        entry = self._entries.get(job_id)
        if entry is None or (entry.record.run, entry.record.enhancement) != (run, "over"):
            return False
        return bool(entry.record.wording == json.loads(dump_json(wording)))

    def _stop_enhancing(self, entry: Entry, wording: dict[str, Any]) -> None:
        entry.enhancer, entry.enhancing_until = None, 0.0
        begun = entry.record.stage is not None
        self._change(entry, enhancement="over", wording=json.loads(dump_json(wording)), stage=None)
        if begun:
            self._state_item(entry, entry.record.attempt)
