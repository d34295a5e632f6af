"""The audit log: who did what, when, and how it ended. Never a prompt."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ourvidz import log
from ourvidz.ledger.record import Record

READS = frozenset({"GET", "HEAD", "OPTIONS"})
REFUSED = frozenset({401, 403})

_log = log.get(__name__)


@dataclass(slots=True)
class Entry:
    """What the log will say of one request. `who` is the name of a key, never the key."""

    who: str = "nobody"
    code: str | None = None
    job_id: str | None = None
    user_id: str | None = None
    type: str | None = None
    policy: Mapping[str, str] | None = None
    """Which rule refused a text, and the text's hash; for this log alone."""

    def about(self, record: Record) -> None:
        """Note which job the request was about."""
        self.job_id, self.user_id, self.type = record.job_id, record.user_id, record.type


def entry(scope: MutableMapping[str, Any]) -> Entry:
    """The entry of a request, made on first use."""
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    if "audit" not in state:
        state["audit"] = Entry()
    found: Entry = state["audit"]
    return found


class Audit:
    """Writes one line for every request that may change something, and for every refused one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Servers share one state mapping between requests; an entry is one request's.
        scope["state"] = {**scope.get("state", {}), "audit": Entry()}
        began = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if scope["method"] not in READS or status in REFUSED:
                _write(scope, status, time.monotonic() - began)


def _write(scope: Scope, status: int, took_s: float) -> None:
    told = entry(scope)
    about = {"job_id": told.job_id, "user_id": told.user_id, "type": told.type, "policy": told.policy}
    _log.info(
        "audit",
        who=told.who,
        method=scope["method"],
        path=scope["path"],
        status=status,
        outcome=told.code or ("ok" if 200 <= status < 400 else "failed"),
        took_ms=round(took_s * 1000, 1),
        **{name: value for name, value in about.items() if value is not None},
    )
