"""Why a job cannot be reopened, cancelled or deleted, in words: the same from both stores."""

from __future__ import annotations

from ourvidz.errors import Conflict, NotFound


def refusal(job_id: str, wish: str, reason: str) -> NotFound | Conflict:
    """Why a job cannot be reopened, cancelled or deleted. `reason` is its status or what is in the way."""
    if reason == "missing":
        return NotFound(f"there is no job {job_id}")
    if reason == "document":
        return Conflict("what was asked for is no longer kept, so the job cannot run again")
    if reason == "callback":
        return Conflict("the job's callback is still on its way")
    return Conflict(f"a {reason} job cannot be {wish}")
