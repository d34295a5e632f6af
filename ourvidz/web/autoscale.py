"""The route that autoscalers read: how many workers a queue should have."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from ourvidz.autoscaling.configuration import policy_for
from ourvidz.autoscaling.demand import read_demand
from ourvidz.autoscaling.policy import wanted_workers
from ourvidz.web.operations import check_queue
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["operations"], responses=documented(401, 403, 404, 422, 503))


class Scale(BaseModel):
    """How many workers a queue should have (`wanted`), and what that follows from.

    `remaining_s`: estimated seconds that its jobs still take on one worker; the queued jobs of a paused queue
    do not count. `idle_s`: seconds since the last claim, null before the first. `jobs_at_a_time`: how many of
    them a worker runs together. `minimum`, `maximum`, `target_wait_s` and `idle_limit_s` are the settings.
    """

    queue: str
    wanted: int
    busy: int
    queued: int
    running: int
    remaining_s: float
    idle_s: float | None
    paused: bool
    jobs_at_a_time: int
    target_wait_s: float
    minimum: int
    maximum: int
    idle_limit_s: float


@router.get("/autoscale/{queue}")
def scale(queue: str) -> Scale:
    """Read how many workers a queue should have: its remaining seconds of work / the target wait, rounded up,
    and never fewer than run a job."""
    app = control.current()
    policy = policy_for(app.settings, check_queue(queue))
    demand = read_demand(app.ledger, queue)
    return Scale(
        queue=queue,
        wanted=wanted_workers(demand, policy),
        busy=demand.busy,
        queued=demand.queued,
        running=demand.running,
        remaining_s=round(demand.remaining_s, 3),
        idle_s=None if demand.idle_s is None else round(demand.idle_s, 3),
        paused=demand.paused,
        jobs_at_a_time=policy.jobs_at_a_time,
        target_wait_s=policy.target_wait_s,
        minimum=policy.minimum,
        maximum=policy.maximum,
        idle_limit_s=policy.idle_s,
    )
