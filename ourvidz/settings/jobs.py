"""Settings of leases, retries and time limits of jobs."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from ourvidz.settings.kinds import Topic, env


def _limits(value: dict[str, float]) -> dict[str, float]:
    wrong = [name for name, limit_s in value.items() if not limit_s > 0]
    if wrong:
        raise ValueError(f"the limit of {', '.join(wrong)} must be more than 0 seconds")
    return value


class JobSettings(Topic):
    """How long things may take, in seconds."""

    lease_s: float = env("OURVIDZ_LEASE_S", 10.0, gt=0)
    sweep_s: float = env("OURVIDZ_SWEEP_S", 2.0, gt=0)
    empty_queue_s: float = env("OURVIDZ_EMPTY_QUEUE_S", 15.0, gt=0)
    retention_s: float = env("OURVIDZ_RETENTION_S", 7 * 86400.0, gt=0)
    retry_window_s: float = env("OURVIDZ_RETRY_WINDOW_S", 86400.0, gt=0)
    worker_grace_s: float = env("OURVIDZ_WORKER_GRACE_S", 900.0, ge=0)
    unclaimed_s: float = env("OURVIDZ_UNCLAIMED_S", 86400.0, gt=0)
    presence_s: float = env("OURVIDZ_PRESENCE_S", 15.0, gt=0)
    time_limits_s: Annotated[dict[str, float], AfterValidator(_limits)] = env("OURVIDZ_TIME_LIMITS_S", {})
    """JSON `{type: seconds}`; the catalog's limit where a type is not named."""
    model_load_s: float = env("OURVIDZ_MODEL_LOAD_S", 600.0, ge=0)
    """How long a first job may spend loading its model, on top of its time limit."""
    drain_s: float = env("OURVIDZ_DRAIN_S", 4.0, gt=0)
    """How long `ourvidz up` lets running jobs finish before it hands them back."""
    previews: bool = env("OURVIDZ_PREVIEWS", True)
    """Whether a job's event stream carries small pictures of the unfinished work."""
