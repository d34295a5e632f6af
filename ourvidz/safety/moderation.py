"""An operator's own judge of texts: any service that answers as the OpenAI moderation API does."""

from __future__ import annotations

import hashlib
import json
from typing import Protocol

from ourvidz import log
from ourvidz.errors import PolicyViolation, WorkerUnavailable
from ourvidz.net.client import HttpResponse, RequestFailure
from ourvidz.safety.gate import MESSAGE

TIMEOUT_S = 10.0
CATEGORY = "moderation"
UNDECIDED = "This request cannot be checked now."

_log = log.get(__name__)


class Poster(Protocol):
    """Who sends one request and waits for its answer."""

    def post(self, url: str, *, body: bytes, headers: dict[str, str]) -> HttpResponse | RequestFailure:
        """The answer of the service, or why there is none."""


class Moderation:
    """Asks a moderation endpoint about texts. It is closed: a text that cannot be judged does not pass."""

    def __init__(self, url: str, key: str | None, client: Poster) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._client = client

    def judge(self, text: str) -> None:
        """`PolicyViolation` for a text that is flagged, in words that name no category; `WorkerUnavailable`
        when the service does not say."""
        if not text.strip():
            return
        body = json.dumps({"input": text}).encode()
        answer = self._client.post(self._url, body=body, headers=self._headers)
        if isinstance(answer, RequestFailure) or answer.status != 200:
            reason = answer.reason if isinstance(answer, RequestFailure) else f"status {answer.status}"
            raise _undecided(reason)
        if _flagged(answer.body):
            violation = PolicyViolation(MESSAGE)
            text_sha256 = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
            violation.audit = {"category": CATEGORY, "text_sha256": text_sha256}
            raise violation


def _flagged(body: bytes) -> bool:
    """Whether any of the results is flagged. What is no such document flags nothing and clears nothing."""
    try:
        verdicts = [result["flagged"] for result in json.loads(body)["results"]]
    except (ValueError, KeyError, TypeError):
        raise _undecided("an answer that is none") from None
    if not verdicts or not all(isinstance(verdict, bool) for verdict in verdicts):
        raise _undecided("an answer without a verdict")
    return any(verdicts)


def _undecided(reason: str) -> WorkerUnavailable:
    _log.warning("moderation_failed", reason=reason)
    return WorkerUnavailable(UNDECIDED)
