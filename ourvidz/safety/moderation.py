"""Client of an external moderation service with the OpenAI moderation API, for texts and pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from ourvidz import log
from ourvidz.errors import PolicyViolation, WorkerUnavailable
from ourvidz.net.client import HttpResponse, RequestFailure
from ourvidz.safety.gate import MESSAGE

TIMEOUT_S = 10.0
CATEGORY = "moderation"
UNDECIDED = "This request cannot be checked now."

_log = log.get(__name__)


class HttpPoster(Protocol):
    """Sends POST requests; `HttpClient` is one."""

    def post(self, url: str, *, body: bytes, headers: dict[str, str]) -> HttpResponse | RequestFailure:
        """Send one POST; return the response, or why there is none."""


class Moderation:
    """Checks texts with a moderation endpoint. It fails closed: a text that cannot be checked is refused."""

    def __init__(self, url: str, key: str | None, client: HttpPoster) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._client = client

    def check(self, text: str) -> None:
        """Raise `PolicyViolation`, without a category, if the service flags the text, and `WorkerUnavailable`
        if it gives no verdict."""
        if text.strip() and self.flags(text):
            violation = PolicyViolation(MESSAGE)
            text_sha256 = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
            violation.audit = {"category": CATEGORY, "text_sha256": text_sha256}
            raise violation

    def flags(self, content: str | Sequence[Mapping[str, object]]) -> bool:
        """Whether the service flags a text, or parts with texts and pictures. Raises `WorkerUnavailable` if
        it gives no verdict."""
        body = json.dumps({"input": content}).encode()
        response = self._client.post(self._url, body=body, headers=self._headers)
        if isinstance(response, RequestFailure) or response.status != 200:
            reason = response.reason if isinstance(response, RequestFailure) else f"status {response.status}"
            raise _undecided(reason)
        return _flagged(response.body)


def _flagged(body: bytes) -> bool:
    """Whether any result in the response is flagged. Raises `WorkerUnavailable` for any other document."""
    try:
        verdicts = [result["flagged"] for result in json.loads(body)["results"]]
    except (ValueError, KeyError, TypeError):
        raise _undecided("an answer that is none") from None
    if not verdicts or not all(isinstance(verdict, bool) for verdict in verdicts):
        raise _undecided("an answer without a verdict")
    return any(verdicts)


def _undecided(reason: str) -> WorkerUnavailable:
    """Log a failed request and build its error; the caller raises it."""
    _log.warning("moderation_failed", reason=reason)
    return WorkerUnavailable(UNDECIDED)
