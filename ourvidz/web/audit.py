"""What is audited: requests with caller, route, job and outcome, as log lines and in the audit log. Never
prompt text."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ourvidz import log
from ourvidz.jobs.job import Job
from ourvidz.keys.caller import Caller
from ourvidz.records.record import Record
from ourvidz.wiring import control

READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
AUTH_FAILURES = frozenset({401, 403})

_log = log.get(__name__)


@dataclass(slots=True)
class AuditEntry:
    """What is logged about one request.

    `caller` is the name of an API key and `key_id` its id, never the key; `code` an error code; `policy` the
    safety rule that refused a text and the text's hash, which appear in this log only.
    """

    caller: str = "nobody"
    key_id: str | None = None
    code: str | None = None
    job_id: str | None = None
    user_id: str | None = None
    type: str | None = None
    policy: Mapping[str, str] | None = None

    def set_caller(self, caller: Caller) -> None:
        """Note who sent the request."""
        self.caller, self.key_id = caller.name, caller.key_id

    def set_job(self, job: Job | Record) -> None:
        """Note the id, user and type of the job that the request is about."""
        self.job_id = job.job_id if isinstance(job, Record) else job.id
        self.user_id, self.type = job.user_id, job.type


def entry(scope: MutableMapping[str, Any]) -> AuditEntry:
    """The audit entry of the request with this ASGI scope, created on first use."""
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    if "audit" not in state:
        state["audit"] = AuditEntry()
    existing: AuditEntry = state["audit"]
    return existing


class AuditMiddleware:
    """ASGI middleware that logs every request with a writing method, and every 401 and 403."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Servers share one state mapping between requests; an entry belongs to one request.
        scope["state"] = {**scope.get("state", {}), "audit": AuditEntry()}
        started = time.monotonic()
        status = 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            if scope["method"] not in READ_METHODS or status in AUTH_FAILURES:
                _write(scope, status, time.monotonic() - started)


def _write(scope: Scope, status: int, duration_s: float) -> None:
    logged = entry(scope)
    optional = {
        "job_id": logged.job_id,
        "user_id": logged.user_id,
        "type": logged.type,
        "policy": logged.policy,
    }
    about = {name: value for name, value in optional.items() if value is not None}
    outcome = logged.code or ("ok" if 200 <= status < 400 else "failed")
    who, method = logged.caller, scope["method"]
    _log.info(
        "audit",
        who=who,
        method=method,
        path=scope["path"],
        status=status,
        outcome=outcome,
        took_ms=round(duration_s * 1000, 1),
        **about,
    )
    writer = control.current().audit
    if writer is not None:
        client = scope.get("client")
        writer.append(
            "request",
            who=who,
            key_id=logged.key_id,
            address=client[0] if client else None,
            method=method,
            path=_known_path(scope),
            status=status,
            outcome=outcome,
            **about,
        )


def _known_path(scope: Scope) -> str | None:
    """The path of a request that a route was found for; others may contain anything, also a prompt."""
    template = getattr(scope.get("route"), "path", "")
    return None if not template or template.startswith("/{") else scope["path"]
