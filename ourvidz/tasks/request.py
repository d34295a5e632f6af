"""How a worker holds a message: with its arguments out of sight."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from ourvidz.dispatch import REDACTED


class RedactedRequest(Request):  # type: ignore[misc]
    """Shows no arguments in events, logs or Flower, whatever the publisher put into the headers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = REDACTED
        self._kwargsrepr = "{}"

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `inspect active` shows: never the arguments themselves."""
        return dict(super().info(safe=safe) | {"args": REDACTED, "kwargs": "{}"})
