"""A RunPod handler, served by the SDK's local API."""

from __future__ import annotations

import time
from typing import Any

import runpod


def handler(_: dict[str, Any]) -> dict[str, float]:
    """The time at which it ran."""
    return {"started": time.time()}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
