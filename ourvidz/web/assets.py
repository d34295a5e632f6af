"""Reads stored assets: from a directory, or by a redirect to where they are stored."""

from __future__ import annotations

import mimetypes
from email.utils import formatdate
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from ourvidz.errors import InvalidParameters, NotFound
from ourvidz.jobs.catalog import READ_BUCKETS, WRITE_BUCKETS
from ourvidz.storage.store import Store
from ourvidz.web import access
from ourvidz.web.file_response import OpenFileResponse, UnsatisfiableRange
from ourvidz.web.problems import documented, problem
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


HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}

_BINARY = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_TEXT_HEADER = {"schema": {"type": "string"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": _BINARY},
    206: {
        "description": "The range of the file that `Range` asks for",
        "content": _BINARY,
        "headers": {"Content-Range": _TEXT_HEADER},
    },
    304: {"description": "The file is the version that `If-None-Match` names"},
    307: {
        "description": "The file is stored elsewhere, at a signed URL that ends",
        "headers": {"Location": {"schema": {"type": "string", "format": "uri"}}},
    },
    **documented(401, 403, 404, 416, 422, 500),
}


@fallback.head("/assets/{key:path}", include_in_schema=False)
@fallback.get("/assets/{key:path}", include_in_schema=False)
def missing_asset(key: str) -> None:
    """Answer 404 for what is no stored file, where the same path would be 405: files can be deleted."""
    raise _not_found(key)


@router.get("/assets/{bucket}/{key:path}", response_class=Response, responses=_RESPONSES)
async def asset(request: Request, bucket: str, key: str) -> Response:
    """Read a stored file, or be redirected to it."""
    if not access.may_see_file(request, f"{bucket}/{key}"):
        raise _not_found(f"{bucket}/{key}")
    limiter: CapacityLimiter = request.app.state.asset_threads
    return await to_thread.run_sync(_respond, request.scope, bucket, key, limiter, limiter=limiter)


@router.head(
    "/assets/{bucket}/{key:path}",
    response_class=Response,
    responses={304: _RESPONSES[304], **documented(401, 403, 404, 422, 500)},
)
async def asset_headers(request: Request, bucket: str, key: str) -> Response:
    """The size, type and age of a stored file, wherever it is stored: signed URLs answer GET only."""
    return await asset(request, bucket, key)


def _respond(scope: Scope, bucket: str, key: str, limiter: CapacityLimiter) -> Response:
    app, name = control.current(), f"{bucket}/{key}"
    # A segment that begins with a dot is no file of a job that is committed.
    if bucket not in BUCKETS or any(segment.startswith(".") for segment in key.split("/")):
        raise _not_found(name)
    try:
        file = app.store.open_file(name)
    except InvalidParameters:
        raise _not_found(name) from None
    if file is not None:
        return _send(file, scope, name, limiter)
    if scope["method"] == "HEAD":
        return _describe(app.store, name)
    return _redirect(app.store, name, app.settings.signed_url_s)


def _send(file: BinaryIO, scope: Scope, name: str, limiter: CapacityLimiter) -> Response:
    """A file of this machine, or the range of it that is asked for. It is closed after that."""
    media_type, inline = _media_type(name)
    filename = PurePosixPath(name).name
    encoded = quote(filename)
    named = f'filename="{filename}"' if encoded == filename else f"filename*=utf-8''{encoded}"
    headers = {**HEADERS, "Content-Disposition": f"{'inline' if inline else 'attachment'}; {named}"}
    try:
        return OpenFileResponse(file, scope, media_type=media_type, headers=headers, limiter=limiter)
    except UnsatisfiableRange as error:
        file.close()
        refusal = InvalidParameters(
            f"The file has {error.size} bytes, and none of them is in this range.",
            field="Range",
            rule="bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT",
        )
        response = problem(refusal, scope["path"], status=416)
        response.headers["Content-Range"] = f"bytes */{error.size}"
        return response


def _describe(store: Store, name: str) -> Response:
    """What is known of a file that is stored elsewhere, without its bytes. Raises `NotFound`,
    `StorageError`."""
    file = store.stat(name)
    headers = {
        **HEADERS,
        "Content-Length": str(file.size),
        "Last-Modified": formatdate(file.modified_at, usegmt=True),
    }
    return Response(status_code=200, headers=headers, media_type=_media_type(name)[0])


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
