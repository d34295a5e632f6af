"""Celery's request class with redacted arguments."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from ourvidz.dispatch import REDACTED


class RedactedRequest(Request):  # type: ignore[misc]
    """A request whose arguments are redacted in events, logs and Flower, whatever the publisher put into the
    headers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = REDACTED
        self._kwargsrepr = "{}"

    def info(self, safe: bool = False) -> dict[str, Any]:
        """Return what `inspect active` shows, with redacted arguments."""
        return dict(super().info(safe=safe) | {"args": REDACTED, "kwargs": "{}"})
