"""Which jobs, files and users the caller of a request may see and use.

What is absent and what belongs to others is one answer: 404.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request

from ourvidz import dispatch
from ourvidz.errors import Forbidden, InvalidParameters, NotFound
from ourvidz.jobs.fields import IDENTIFIER, Fields
from ourvidz.jobs.job import AdminJob, Job
from ourvidz.keys.caller import Caller
from ourvidz.records.record import Record
from ourvidz.web.auth import caller_of
from ourvidz.wiring import control

USER_FIELDS = ("user_id", "metadata.user_id")


def parse_job(request: Request, payload: object, *, make_id: Callable[[], str] | None = None) -> Job:
    """The job of a payload that the caller may submit. One that names no user is the only user's of a key
    that is bound to one. Raises as `dispatch.parse_payload` does, and `Forbidden`."""
    caller = caller_of(request)
    if caller.binding is not None and caller.binding.user_id is not None and isinstance(payload, dict):
        payload = _with_user(payload, caller.binding.user_id)
    job = dispatch.parse_payload(payload, make_id=make_id)
    check_job(caller, job)
    return job


def check_job(caller: Caller, job: Job) -> None:
    """Raise `Forbidden` for a job that the caller may not submit."""
    if not caller.bound:
        return
    if isinstance(job, AdminJob):
        raise Forbidden("A key bound to users may not administer the installation.", field="type")
    check_user(caller, job.user_id)


def check_user(caller: Caller, user_id: str | None) -> None:
    """Raise `Forbidden` for a user that the caller may not act for."""
    if not caller.sees_user(user_id):
        raise Forbidden("This key is bound to other users.", field="user_id")


def find_record(request: Request, job_id: str) -> Record:
    """The record of a job. Raises `NotFound`, also for what cannot be an id, and for jobs of others."""
    record = control.current().ledger.get(job_id) if IDENTIFIER.fullmatch(job_id) else None
    if record is None or not caller_of(request).sees_job(record.job_id, record.user_id):
        raise NotFound("There is no job under this id.", field="id", value=job_id)
    return record


def may_see_file(request: Request, key: str) -> bool:
    """Whether the caller may see a stored file, by its key: `bucket/user/job/…`."""
    caller = caller_of(request)
    if not caller.bound:
        return True
    parts = key.split("/")
    if len(parts) < 2 or not all(parts[1:3]):
        return False
    # A file of no job, such as an uploaded reference, is no file of the only job of a token.
    return caller.sees_job(parts[2] if len(parts) > 3 else "", parts[1])


def own_user(request: Request, user_id: str | None) -> str | None:
    """The user of a list that the caller asks for: `user_id`, or the only one that its key is bound to.

    Raises `InvalidParameters` where its key has several users and it names none of them.
    """
    binding = caller_of(request).binding
    if user_id or binding is None:
        return user_id or None
    if binding.user_id is None:
        raise InvalidParameters(
            "Name a user: this key has several.", field="user_id", rule="a user of the key"
        )
    return binding.user_id


def _with_user(payload: dict[str, Any], user_id: str) -> dict[str, Any]:
    return payload if Fields(payload).first(*USER_FIELDS) else {**payload, "user_id": user_id}
