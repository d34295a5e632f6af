"""The route that erases all that is stored of a user."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from ourvidz.erasure.users import erase_user
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.web import audit
from ourvidz.web.problems import documented

router = APIRouter(tags=["operations"], responses=documented(401, 403, 422, 500, 503))


class Erasure(BaseModel):
    """What this request erased of a user: jobs, files without a job, callbacks in the inbox, refused entries
    of raw lists; rows of GPU usage that count for nobody now. With `complete` nothing is left."""

    user_id: str
    jobs: int
    files: int
    callbacks: int
    refused_imports: int
    usage_rows: int
    running: int
    unreadable: int
    rewritten: bool
    complete: bool


@router.delete("/users/{id}/data", responses={202: {"model": Erasure, "description": "A keeper goes on."}})
def erase(
    request: Request,
    response: Response,
    user_id: Annotated[str, Path(alias="id", pattern=rf"^({IDENTIFIER.pattern})$")],
) -> Erasure:
    """Erase all that is stored of a user; running jobs are cancelled. Can be repeated."""
    audit.entry(request.scope).user_id = user_id
    report = erase_user(user_id)
    response.status_code = 200 if report.complete else 202
    return Erasure(**asdict(report))
