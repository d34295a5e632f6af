"""Parses JSON request bodies; anything but plain JSON in UTF-8 is refused."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from ourvidz.jobs.json_text import parse_json


async def read_json(request: Request) -> Any:
    """The value of a request's JSON body. Raises as `parse_json`."""
    return parse_json(await request.body())
