"""Raw lists: jobs that callers push as JSON onto Redis lists, without asking whether they were accepted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ourvidz import log
from ourvidz.dispatch.submission import submit
from ourvidz.errors import (
    CallerError,
    CapacityExceeded,
    Conflict,
    InternalError,
    NewerRelease,
    OurvidzError,
    PayloadTooLarge,
    WorkerUnavailable,
)
from ourvidz.jobs.catalog import lookup
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.jobs.json_text import parse_json
from ourvidz.jobs.outcome import Outcome
from ourvidz.records.imports import RefusedJob
from ourvidz.wiring import control

ROUND = 500
"""Entries of one list that one call imports, so that a long list does not hold up the others."""

_log = log.get(__name__)


@dataclass(slots=True)
class ImportReport:
    """The numbers of entries that one call submitted and refused."""

    accepted: int = 0
    refused: int = 0


class _CeleryMessage(CallerError):
    """The entry is a message of a Celery application that uses the list as its queue."""


def import_lists(*, checkpoint: Callable[[], None] = lambda: None) -> ImportReport:
    """Submit the entries of the lists in `OURVIDZ_IMPORT_LISTS`, oldest first.

    Killed at any moment, nothing is lost and nothing doubled: an entry is moved to a list of its own before
    it is submitted, stays there until it is a job, and its id makes a second submission a repeat. An entry
    that is refused is put aside with the reason; its receiver gets a `failed` callback where the entry has an
    id that no job has. `checkpoint` is called between entries, and what it raises ends the call. Raises
    `WorkerUnavailable` when the ledger cannot be reached. Then, and while there is no capacity for new jobs,
    the entry stays the next one.
    """
    report = ImportReport()
    names = control.current().settings.import_lists
    if not control.current().ledger.has_imports(names):
        return report
    for name in names:
        for _ in range(ROUND):
            entry = control.current().ledger.next_import(name)
            if entry is None or not _import(name, entry, report):
                break
            checkpoint()
    return report


def _import(name: str, entry: str, report: ImportReport) -> bool:
    """Submit one entry, or put it aside. Returns whether to go on with this list."""
    ledger = control.current().ledger
    payload: Any = None
    try:
        payload = _parse(entry)
        admission = submit(payload, require_worker=False)
    except (_CeleryMessage, NewerRelease):
        # Of an earlier release, or of another application: the keeper or that application takes it. Where a
        # newer release has recorded a job under the id, a keeper of that release can compare the two.
        ledger.put_import_back(name, entry)
        return False
    except CapacityExceeded:
        return False
    except WorkerUnavailable:
        raise
    except Exception as error:  # noqa: BLE001  an entry that fails must not stay in front of all others
        _refuse(name, entry, payload, _refusal(name, error))
        report.refused += 1
        return True
    report.accepted += ledger.end_import(name, entry)
    _log.info("imported", job_id=admission.record.job_id, list=name, created=admission.created)
    return True


def _refusal(name: str, error: Exception) -> CallerError | InternalError:
    """Return the error that refuses an entry. One that is no fault of the caller is logged: the record under
    the entry's id may be damaged."""
    if isinstance(error, CallerError):
        return error
    _log.error("import_failed", list=name, exc_info=error)
    return InternalError("the job could not be recorded; the operators have the details")


def _parse(entry: str) -> Any:
    """Return the payload of an entry. Some clients encode it twice."""
    limit = control.current().settings.data_uri_body_limit
    if len(entry) > limit:
        raise PayloadTooLarge(f"an entry may have {limit} bytes at most")
    payload = parse_json(entry.encode("utf-8", "surrogateescape"))
    if isinstance(payload, str):
        payload = parse_json(payload)
    if isinstance(payload, dict) and {"body", "headers", "properties"} <= payload.keys():
        raise _CeleryMessage("a Celery message")
    return payload


def _refuse(name: str, entry: str, payload: Any, error: OurvidzError) -> None:
    report = {
        "at": time.time(),
        "list": name,
        "code": error.code,
        "reason": error.message,
        "field": error.field,
        "entry": entry.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
    }
    job = None if isinstance(error, Conflict) else _refused_job(payload, error)
    event_id = control.current().ledger.refuse_import(name, entry, report, job)
    _log.warning(
        "import_refused", list=name, job_id=job and job.job_id, code=error.code, field=error.field,
        event_id=event_id or None,
    )  # fmt: skip


def _refused_job(payload: Any, error: OurvidzError) -> RefusedJob | None:
    """Return what a receiver is told of a refused job; None where its id or a receiver is not known."""
    target = control.current().target
    if not isinstance(payload, dict):
        return None
    job_id = next((value for name in ("id", "job_id") if (value := payload.get(name))), None)
    if not isinstance(job_id, str) or not IDENTIFIER.fullmatch(job_id):
        return None
    own_url = payload.get("callback_url")
    url = own_url if isinstance(own_url, str) and target.refusal(own_url) is None else None
    if target.url(url) is None:
        return None
    type_name = payload.get("type") or payload.get("job_type")
    row = lookup(type_name) if isinstance(type_name, str) else None
    return RefusedJob(
        job_id=job_id,
        callback_metadata={"job_type": row.name if row else None},
        callback_url=url,
        outcome=Outcome.failure(error),
    )
