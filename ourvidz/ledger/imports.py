"""Lists into which callers push raw jobs: taking their entries one at a time, none lost, none doubled.

The lists belong to their callers: their names have no prefix. What is taken from them does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ourvidz.ledger.base import LedgerBase
from ourvidz.records.codec import dump_json, dump_outcome
from ourvidz.records.imports import RefusedImport, RefusedJob, load_refused

REFUSED_LIMIT = 10_000
"""Refused entries that are kept; the oldest are dropped."""


class ImportOperations(LedgerBase):
    """Verbs of the import. An entry that was taken stays the next one until `end_import` or `refuse_import`;
    several importers get the same entry, and the first to end it counts."""

    def has_imports(self, list_names: Sequence[str]) -> bool:
        """Whether any of these lists may have an entry to import: one command for all of them."""
        names = [*list_names, *(self._keys.importing(name) for name in list_names)]
        client = self._connection.client
        return bool(names) and bool(self._connection.with_retries(lambda: client.exists(*names)))

    def next_import(self, list_name: str) -> str | None:
        """Take the oldest entry of a list. None when it is empty, or no list. Bytes that are not UTF-8 are
        surrogates."""
        entry: str | None = self._connection.run_script("next_import", list_name)
        return entry

    def end_import(self, list_name: str, entry: str) -> bool:
        """Note that an entry is a job now. Returns whether this importer was the first."""
        return bool(self._connection.run_script("end_import", list_name, entry, 0))

    def put_import_back(self, list_name: str, entry: str) -> bool:
        """Return an entry to the end of its list. Returns whether this importer was the first."""
        return bool(self._connection.run_script("end_import", list_name, entry, 1))

    def refuse_import(
        self, list_name: str, entry: str, report: dict[str, Any], job: RefusedJob | None
    ) -> str | None:
        """Put an entry aside with a report of the reason, and add the `failed` event of its job.

        No event is added where another job has the id. Returns the id of the event, '' where none was added;
        None when another importer was first.
        """
        event: tuple[object, ...] = ()
        if job is not None:
            outcome = dump_outcome(job.outcome)
            event = job.job_id, dump_json(job.callback_metadata), job.callback_url, outcome
        answer: str | None = self._connection.run_script(
            "refuse_import", list_name, entry, dump_json(report), REFUSED_LIMIT, *(event or ("",) * 4)
        )
        return answer

    def refused_imports(self) -> list[RefusedImport]:
        """The refused entries that are kept, oldest first."""
        client, name = self._connection.client, self._keys.refused_imports
        reports = self._connection.with_retries(lambda: client.lrange(name, 0, -1))
        return [load_refused(report) for report in reports]

    def take_refused_import(self, refused: RefusedImport, *, back: bool) -> bool:
        """Keep a refused entry no longer; with `back` put it back into its list, behind the others, to be
        imported again. False when it is not kept any more."""
        args = (refused.report, refused.list_name, refused.entry, int(back))
        return bool(self._connection.run_script("take_refused_import", *args))
