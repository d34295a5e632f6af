"""The route about GPU usage and its cost."""

from __future__ import annotations

import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.records import gpu_usage
from ourvidz.web import access
from ourvidz.web.auth import caller_of
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["operations"], responses=documented(401, 403, 422, 503))

DEFAULT_DAYS = 7
"""How many days the answer has where the request names none, today included."""
MAX_DAYS = 366


class UsageRow(BaseModel):
    """What the jobs of one type used on one day: how many completed or failed, GPU-seconds of all their
    attempts, and the cost in the currency of `OURVIDZ_GPU_PRICE`; 0 without a price."""

    date: datetime.date
    type: str
    jobs: int
    gpu_seconds: float
    cost: float


class UsageReport(BaseModel):
    """GPU usage by day (UTC) and job type, oldest first, and the sums."""

    user_id: str | None
    items: list[UsageRow]
    jobs: int
    gpu_seconds: float
    cost: float


@router.get("/usage")
def usage(
    request: Request,
    user_id: Annotated[str | None, Query(pattern=rf"^({IDENTIFIER.pattern})?$")] = None,
    first: Annotated[
        datetime.date | None, Query(alias="from", description="First day; default six days before `to`.")
    ] = None,
    last: Annotated[datetime.date | None, Query(alias="to", description="Last day; default today.")] = None,
) -> UsageReport:
    """GPU-seconds and cost by day and job type, of one user or of all."""
    user_id = access.own_user(request, user_id)
    access.check_user(caller_of(request), user_id)
    last = last or gpu_usage.today()
    last_number = gpu_usage.day_number(last)
    # The calendar has a first day.
    default_first = max(last_number - DEFAULT_DAYS + 1, gpu_usage.day_number(datetime.date.min))
    first_number = default_first if first is None else gpu_usage.day_number(first)
    if not 0 <= last_number - first_number < MAX_DAYS:
        rule = f"a day that is at most {MAX_DAYS - 1} days before `to`"
        raise InvalidParameters(f"from: must be {rule}", field="from", rule=rule, value=str(first))
    numbers = range(first_number, last_number + 1)
    hashes = control.current().ledger.gpu_usage(numbers)
    rows = [
        row
        for number, fields in zip(numbers, hashes, strict=True)
        for row in gpu_usage.load_usage(number, fields, user_id=user_id)
    ]
    return UsageReport(
        user_id=user_id,
        items=[
            UsageRow(
                date=row.date,
                type=row.type,
                jobs=row.jobs,
                gpu_seconds=round(row.gpu_seconds, 3),
                cost=round(row.cost, 6),
            )
            for row in rows
        ],
        jobs=sum(row.jobs for row in rows),
        gpu_seconds=gpu_usage.total_seconds(rows),
        cost=round(sum(row.cost for row in rows), 6),
    )
