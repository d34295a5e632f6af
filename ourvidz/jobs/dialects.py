"""Parses payloads of any type, in any of the dialects that callers use, into jobs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ourvidz.jobs.catalog import ALIASES, CATALOG, JobType, Kind, lookup
from ourvidz.jobs.chats import parse_admin, parse_chat
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, fill_in, invalid_value, missing_field
from ourvidz.jobs.images import parse_image
from ourvidz.jobs.job import Job
from ourvidz.jobs.ranges import EXPECTED_S
from ourvidz.jobs.unread import check_unread, without_pictures
from ourvidz.jobs.urls import read_callback_url
from ourvidz.jobs.videos import parse_video

__all__ = ["Defaults", "parse"]

Parser = Callable[[Fields, JobType, dict[str, Any], Defaults], Job]

PARSERS: dict[Kind, Parser] = {
    "image": parse_image,
    "video": parse_video,
    "chat": parse_chat,
    "admin": parse_admin,
}
CARRIED_FIELDS: dict[str, tuple[str, ...]] = {
    "video_id": ("video_id",),
    "image_id": ("image_id",),
    "character_id": ("character_id",),
    "model_variant": ("model_variant", "metadata.model_variant"),
    "created_at": ("created_at",),
}
BOOLEAN_FLAGS = ("unrestricted_mode", "nsfw_optimization", "sfw_mode")
ECHOED_FIELDS: dict[str, tuple[str, ...]] = {
    "content_tier": ("content_tier", "metadata.content_tier"),
    "content_type": ("content_type", "metadata.content_type", "metadata.contentType"),
}


def parse(payload: object, defaults: Defaults, *, make_id: Callable[[], str] | None = None) -> Job:
    """Parse and validate a payload.

    `make_id` supplies an id if the payload has none (synchronous routes); without it the id is required.
    Nothing is fetched. Two calls with one payload differ only in a drawn seed and a made id. Raises a
    `CallerError` whose `field` is the path in the payload, such as `config.resolution`.
    """
    fields = Fields(payload)
    job_id = _read_id(fields, make_id)
    row = _read_type(fields)
    sent = {
        "id": job_id,
        "type": row.name,
        "user_id": _read_user_id(fields, row),
        "expected_time": fields.lenient(
            partial(fields.number, within=EXPECTED_S),
            "config.expected_time",
            "metadata.expected_generation_time",
        ),
        "callback_url": read_callback_url(fields, defaults.callback_hosts),
        "carried": _drop_none({name: fields.passthrough(*paths) for name, paths in CARRIED_FIELDS.items()}),
        "flags": _read_flags(fields),
    }
    common = fill_in(sent, {"expected_time": row.expected_s[1]})
    job = PARSERS[row.kind](fields, row, common, defaults)
    extras = without_pictures(fields.unread())
    check_unread(extras, {**job.carried, **job.flags})
    return job.model_copy(update={"extras": extras})


def _read_id(fields: Fields, make_id: Callable[[], str] | None) -> str:
    """The job id; if it is missing, one from `make_id`."""
    job_id = fields.identifier("id", "job_id")
    if job_id is not None:
        return job_id
    if make_id is None:
        raise missing_field("id", "a job needs an id of its caller")
    return make_id()


def _read_type(fields: Fields) -> JobType:
    """The catalog row of the job type or alias."""
    field = fields.first("type", "job_type")
    if field is None:
        raise missing_field("type", "a job needs a type")
    row = lookup(field.value) if isinstance(field.value, str) else None
    if row is None:
        raise invalid_value(field.path, f"one of {', '.join((*CATALOG, *ALIASES))}", field.value)
    return row


def _read_user_id(fields: Fields, row: JobType) -> str | None:
    """The user id, required for job types that store assets."""
    user_id = fields.identifier("user_id", "metadata.user_id")
    if user_id is None and row.stores_assets:
        raise missing_field("user_id", "a job that stores assets needs the user they belong to")
    return user_id


def _read_flags(fields: Fields) -> dict[str, Any]:
    """The boolean flags and the echoed fields of the payload, without missing ones."""
    booleans = {
        name: fields.lenient(fields.boolean, name, f"config.{name}", f"metadata.{name}")
        for name in BOOLEAN_FLAGS
    }
    booleans["reuse"] = fields.boolean("config.reuse")
    return _drop_none(booleans | {name: fields.passthrough(*paths) for name, paths in ECHOED_FIELDS.items()})


def _drop_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
