"""Reads stored assets: from a directory, or by a redirect to where they are stored."""

from __future__ import annotations

import mimetypes
from pathlib import PurePosixPath

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, RedirectResponse, Response

from ourvidz.errors import InvalidParameters, NotFound, StorageError
from ourvidz.jobs.catalog import READ_BUCKETS, WRITE_BUCKETS
from ourvidz.storage.store import Store
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["jobs"])
fallback = APIRouter()

BUCKETS = frozenset({*WRITE_BUCKETS, *READ_BUCKETS})
"""The buckets that are served; the checkpoints of running jobs are in another one."""
THREADS = 8
"""How many requests may wait for the storage at a time: one that hangs must not take the threads of all
routes."""
INLINE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4"})
"""Files that a browser may display. Others are downloads: a stored page must not run in this origin."""


@fallback.get("/assets/{key:path}", include_in_schema=False)
def missing_asset(key: str) -> None:
    """Answer 404 for what is no stored file, where the same path would be 405: files can be deleted."""
    raise _not_found(key)


@router.get(
    "/assets/{bucket}/{key:path}",
    response_class=FileResponse,
    responses={
        200: {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
        307: {
            "description": "The file is stored elsewhere, at a signed URL that ends",
            "headers": {"Location": {"schema": {"type": "string", "format": "uri"}}},
        },
        **documented(401, 403, 404, 422, 500),
    },
)
async def asset(request: Request, bucket: str, key: str) -> Response:
    """Read a stored file, or be redirected to it."""
    limiter: CapacityLimiter = request.app.state.asset_threads
    return await to_thread.run_sync(_respond, bucket, key, limiter=limiter)


def _respond(bucket: str, key: str) -> Response:
    app, name = control.current(), f"{bucket}/{key}"
    # A segment that begins with a dot is no file of a job that is committed.
    if bucket not in BUCKETS or any(segment.startswith(".") for segment in key.split("/")):
        raise _not_found(name)
    return _local(app.store, name) or _redirect(app.store, name, app.settings.signed_url_s)


def _local(store: Store, name: str) -> FileResponse | None:
    """The file on this machine; None if files are stored elsewhere."""
    try:
        path = store.local_path(name)
    except (InvalidParameters, StorageError):
        raise _not_found(name) from None
    if path is None:
        return None
    media_type, inline = _media_type(name)
    return FileResponse(
        path,
        media_type=media_type,
        filename=PurePosixPath(name).name,
        content_disposition_type="inline" if inline else "attachment",
        headers={
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        },
    )


def _redirect(store: Store, name: str, lifetime_s: float) -> RedirectResponse:
    """A redirect to a URL that is signed now. Raises `NotFound` without such a file, `StorageError` when the
    storage does not answer."""
    url = store.urls([name], lifetime_s=lifetime_s).get(name) if store.exists(name) else None
    if url is None:
        raise _not_found(name)
    # The URL ends: it is asked for again.
    return RedirectResponse(url, 307, headers={"Cache-Control": "no-store"})


def _not_found(name: str) -> NotFound:
    return NotFound("There is no such asset.", field="key", value=name)


def _media_type(name: str) -> tuple[str, bool]:
    """The media type of a file by its suffix, and whether a browser may display it."""
    if PurePosixPath(name).suffix.lower() in INLINE_SUFFIXES:
        return mimetypes.guess_type(name)[0] or "application/octet-stream", True
    return "application/octet-stream", False
