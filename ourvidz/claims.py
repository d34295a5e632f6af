"""Claims: how a running task gets the right to run one attempt of a job.

The signal handler before a task and the task body both ask for the claim of their Celery request; whichever
is first makes it. Companions of a text batch are claimed by the same call to the ledger.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery.app.task import Context

from ourvidz import dispatch, log
from ourvidz.errors import NewerRelease, WorkerUnavailable
from ourvidz.jobs.catalog import CATALOG, QUEUES
from ourvidz.records.calls import ClaimRequest
from ourvidz.records.record import Claim, Record
from ourvidz.wiring import control

TEXT_TASK = CATALOG["chat_conversation"].task
TEXT_TYPES = frozenset(row.name for row in CATALOG.values() if row.task == TEXT_TASK)

_log = log.get(__name__)
_ATTRIBUTE = "ourvidz_claim"


@dataclass(slots=True)
class RequestClaim:
    """The claim of one Celery request, kept on the request as its attribute `ourvidz_claim`.

    `token` is one for the signal handler and the task body, so that a claim whose reply was lost is found
    again. `candidates` are the messages to try in order, None until they are known. `claim` is meaningful
    when `decided`: None means that the request has nothing to run.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    candidates: list[dict[str, Any]] | None = None
    decided: bool = False
    claim: Claim | None = None


def task_argument(args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> Any:
    """Return the one argument of a generation task, passed by position or as `message`; None without it."""
    return args[0] if args else (kwargs or {}).get("message")


def claim_for(request: Context, argument: Any) -> Claim | None:
    """Return the claim of a running task, made on the first call.

    `argument` is the task's own: a message, or a whole payload (a bare `send_task`), which is submitted
    first. A message of a text job stands for the text job that is next in the queue. Returns None when
    another worker has the job, or it is finished or cancelled. Raises `WorkerUnavailable` when the ledger
    cannot be reached; the next call tries again with the same token.
    """
    state = _state(request)
    if not state.decided:
        settings = control.current().settings
        worker_id = settings.worker_id("eager") if request.is_eager else request.hostname
        if state.candidates is None:
            state.candidates = _candidates(request, argument)
        claims = (
            claim(each["id"], each["run"], worker_id=worker_id, token=state.token)
            for each in state.candidates
        )
        state.claim = next((won for won in claims if won is not None), None)
        state.decided = True
    return state.claim


def current_claim(request: Context) -> Claim | None:
    """Return the claim that was made for a request, or None. Makes none."""
    state: RequestClaim | None = getattr(request, _ATTRIBUTE, None)
    return None if state is None else state.claim


def claim_companion(record: Record, *, worker_id: str, beside: str) -> Claim | None:
    """Claim a further job for a task that already runs one, the job `beside`; None when it cannot be
    claimed."""
    return claim(record.job_id, record.run, worker_id=worker_id, token=uuid.uuid4().hex, beside=beside)


def claim_companions(records: Sequence[Record], *, worker_id: str, beside: str) -> list[Claim | None]:
    """`claim_companion` for several jobs, in one round trip unless one of them cannot be read."""
    app = control.current()
    lease_s = app.settings.lease_s
    requests = [
        ClaimRequest(record.job_id, record.run, worker_id, lease_s, uuid.uuid4().hex, beside)
        for record in records
    ]
    try:
        return app.ledger.claims(requests)
    except WorkerUnavailable:
        raise
    except Exception:  # noqa: BLE001  each is claimed again, with its token: only one of them is at fault
        return [_claim_readable(request) for request in requests]


def _claim_readable(request: ClaimRequest) -> Claim | None:
    """Claim a job; None also when it cannot be read: claims of others are made, and must be run."""
    try:
        (won,) = control.current().ledger.claims([request])
    except Exception:  # noqa: BLE001
        _log.exception("company_unreadable", job_id=request.job_id)
        return None
    return won


def claim(job_id: str, run: int, *, worker_id: str, token: str, beside: str | None = None) -> Claim | None:
    """Claim one run of a job under the configured lease; None when the ledger refuses it, or the record is of
    a newer release: that one publishes the job again."""
    app = control.current()
    try:
        return app.ledger.claim(
            job_id, run, worker_id=worker_id, lease_s=app.settings.lease_s, token=token, beside=beside
        )
    except NewerRelease as error:
        _log.warning("left_to_newer_release", job_id=job_id, reason=error.message)
        return None


def _state(request: Context) -> RequestClaim:
    state: RequestClaim | None = getattr(request, _ATTRIBUTE, None)
    if state is None:
        state = RequestClaim()
        setattr(request, _ATTRIBUTE, state)
    return state


def _candidates(request: Context, argument: Any) -> list[dict[str, Any]]:
    """Return the messages that a request may start, in order of preference; a payload is submitted first.

    A payload of another task's type is published for that task, and there is nothing to start here. Messages
    published in the same moment arrive in any order; text jobs start in the order of their records.
    """
    message = argument
    if not dispatch.is_message(argument):
        admission = dispatch.submit(argument, in_worker=True)
        if CATALOG[admission.record.type].task != request.task:
            if admission.created:
                dispatch.publish(admission.record)
            return []
        message = dispatch.message(admission.record)
    if request.task != TEXT_TASK or request.is_eager:
        return [message]
    startable = control.current().ledger.startable(QUEUES["chat"], 1)
    first = [dispatch.message(record) for record, _ in startable if record.type in TEXT_TYPES]
    return [*(each for each in first if each != message), message]
