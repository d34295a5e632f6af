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
    """Leases, retries and time limits in seconds."""

    lease_s: float = env("OURVIDZ_LEASE_S", 10.0, gt=0)
    """Duration of a claim's lease; workers renew it while the job runs."""
    sweep_s: float = env("OURVIDZ_SWEEP_S", 2.0, gt=0)
    """Interval between recovery sweeps."""
    empty_queue_s: float = env("OURVIDZ_EMPTY_QUEUE_S", 15.0, gt=0)
    """Time a broker queue is empty before its queued jobs are published again."""
    retention_s: float = env("OURVIDZ_RETENTION_S", 7 * 86400.0, gt=0)
    """Time after which the record of an ended job is purged."""
    retry_window_s: float = env("OURVIDZ_RETRY_WINDOW_S", 86400.0, gt=0)
    """Time in which a failed or cancelled job with a large payload can be retried."""
    max_queued: int = env("OURVIDZ_MAX_QUEUED", 100_000, gt=0)
    """Number of queued jobs, in all queues together, above which new ones are refused."""
    worker_grace_s: float = env("OURVIDZ_WORKER_GRACE_S", 900.0, ge=0)
    """Time without a live worker after which submissions to its queue are refused."""
    unclaimed_s: float = env("OURVIDZ_UNCLAIMED_S", 86400.0, gt=0)
    """Time after which a job that no worker claimed fails."""
    presence_s: float = env("OURVIDZ_PRESENCE_S", 15.0, gt=0)
    """Time without a heartbeat after which a worker is offline."""
    time_limits_s: Annotated[dict[str, float], AfterValidator(_limits)] = env("OURVIDZ_TIME_LIMITS_S", {})
    """Time limits by job type as JSON, `{type: seconds}`; other types have the limit of the catalog."""
    model_load_s: float = env("OURVIDZ_MODEL_LOAD_S", 600.0, ge=0)
    """Time added to the limit of a job that has to load its model; also the longest start of a worker's
    child, if it is more than ten minutes."""
    drain_s: float = env("OURVIDZ_DRAIN_S", 4.0, gt=0)
    """Time that a stopping worker gives its running job to finish before it requeues it."""
    gpu_price: float | None = env("OURVIDZ_GPU_PRICE", None, ge=0)
    """Price of one GPU for an hour, in any currency: jobs report what they cost."""
    embedding_cache_mib: int = env("OURVIDZ_EMBEDDING_CACHE_MIB", 256, ge=0)
    """Host memory of a worker for encoded prompts and references; 0 keeps none."""
    checkpoint_s: float = env("OURVIDZ_CHECKPOINT_S", 5.0, ge=0)
    """Longest time between two checkpoints of a job's denoising; 0 saves none."""
    preempt_every_s: float = env("OURVIDZ_PREEMPT_EVERY_S", 30.0, ge=0)
    """Time that a long job works before it yields to a short one, and between two such pauses; 0 is
    never."""
    previews: bool = env("OURVIDZ_PREVIEWS", True)
    """Whether workers add preview images to a job's event stream."""
