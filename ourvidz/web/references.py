"""Routes for uploaded references: files that jobs of the same user name by their storage path."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ourvidz import uploads
from ourvidz.errors import CapacityExceeded, InvalidParameters, NotFound, PayloadTooLarge
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.web import access, audit
from ourvidz.web.auth import caller_of
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["jobs"])

MULTIPART_BYTES = 64 << 10
"""What a multipart body may have beside its file."""
MAX_FIELDS = 8
MAX_UPLOADS = 4
"""Uploads that one process receives at a time; each holds its file in memory."""
RETRY_AFTER_S = 2.0
RECEIVE_S = 120.0
"""How long a body may take to arrive."""

BINARY = {"schema": {"type": "string", "format": "binary"}}
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "user_id": {"type": "string", "pattern": f"^{IDENTIFIER.pattern}$"},
                    },
                }
            },
            "application/octet-stream": BINARY,
        },
    }
}

UserId = Annotated[str | None, Query(description="Whose jobs may use the reference.")]


class UploadedReference(BaseModel):
    """An uploaded reference: jobs of the same user name its `path`, until `expires_at`."""

    path: str
    user_id: str
    width: int
    height: int
    size_bytes: int
    content_type: str
    expires_at: datetime


class DeletedReference(BaseModel):
    """A path under which no reference is stored any more."""

    path: str
    deleted: Literal[True] = True


@router.post(
    "/references",
    status_code=201,
    response_model=UploadedReference,
    responses=documented(401, 403, 413, 422, 500, 503),
    openapi_extra=UPLOAD_BODY,
)
async def upload(request: Request, user_id: UserId = None) -> Response:
    """Upload a reference image for jobs of one user: as `file` of a form, or as the body with any other
    content type. It is decoded, and stored without its metadata."""
    with _slot():
        try:
            async with asyncio.timeout(RECEIVE_S):
                data, named = await _read(request)
        except TimeoutError:
            raise InvalidParameters("The file did not arrive in time.", field="file") from None
        if None not in (named, user_id) and named != user_id:
            raise InvalidParameters("The form and the URL name different users.", field="user_id")
        return await run_in_threadpool(_store, request, data, named or user_id)


@router.delete("/references/{path:path}", responses=documented(401, 403, 404, 422, 500, 503))
def delete(
    request: Request,
    path: Annotated[str, Path(description="As `POST /references` answered it.")],
    user_id: UserId = None,
) -> DeletedReference:
    """Delete an uploaded reference before its time is over. Jobs that name it use their prompt alone."""
    owner = audit.entry(request.scope).user_id = _check_user(access.own_user(request, user_id))
    if not access.may_see_file(request, path) or not caller_of(request).sees_user(owner):
        raise NotFound("There is no uploaded reference under this path.", field="path", value=path)
    uploads.delete_upload(control.current().store, path, user_id=owner)
    return DeletedReference(path=path)


def _store(request: Request, data: bytes, user_id: str | None) -> Response:
    """Store the file of an upload, and answer with its path."""
    app = control.current()
    owner = audit.entry(request.scope).user_id = _check_user(access.own_user(request, user_id))
    access.check_user(caller_of(request), owner)
    if not data:
        raise InvalidParameters("The body has no file.", field="file", rule="an image file")
    if refused := app.capacity.refusal():
        raise refused
    stored = uploads.store_upload(
        app.store,
        data,
        user_id=owner,
        now=app.ledger.now(),
        ttl_s=app.settings.reference_ttl_s,
        max_bytes=app.settings.reference_max_bytes,
        max_pixels=app.settings.reference_max_px,
    )
    document = UploadedReference(
        path=stored.path,
        user_id=owner,
        width=stored.width,
        height=stored.height,
        size_bytes=stored.size_bytes,
        content_type=stored.content_type,
        expires_at=datetime.fromtimestamp(stored.expires_at, UTC),
    )
    return Response(document.model_dump_json(), 201, media_type="application/json")


async def _read(request: Request) -> tuple[bytes, str | None]:
    """The file of an upload, and the `user_id` of its form if it is one. Raises `InvalidParameters`, and
    `PayloadTooLarge` as soon as more than the largest file has arrived."""
    limit = control.current().settings.reference_max_bytes
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > limit:
                raise _too_large(limit)
        return bytes(data), None
    try:
        form = await _InMemoryParser(
            request.headers,
            request.stream(),
            max_files=1,
            max_fields=MAX_FIELDS,
            max_part_size=MULTIPART_BYTES,
        ).parse()
    except (MultiPartException, LookupError, ValueError) as error:
        raise InvalidParameters(f"The form cannot be read: {error}", field="file") from None
    file, user_id = form.get("file"), form.get("user_id")
    try:
        if not isinstance(file, UploadFile):
            raise InvalidParameters(
                "The form has no file.", field="file", rule="a part `file` with a file name"
            )
        if (file.size or 0) > limit:
            raise _too_large(limit)
        return await file.read(), user_id if isinstance(user_id, str) else None
    finally:
        await form.close()


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The file is larger than {limit} bytes.", field="file", rule=f"at most {limit} bytes"
    )


class _InMemoryParser(MultiPartParser):
    """Writes no temporary files: a control host's root may be read-only, and the body is bounded."""

    spool_max_size = 1 << 40


def _check_user(user_id: str | None) -> str:
    """The user id of a request. Raises `InvalidParameters`."""
    if user_id is None or not IDENTIFIER.fullmatch(user_id):
        raise InvalidParameters(
            "A reference belongs to a user.", field="user_id", rule="the user_id of the jobs", value=user_id
        )
    return user_id


_receiving = 0


@contextmanager
def _slot() -> Iterator[None]:
    """Count an upload of this process. Raises `CapacityExceeded` if there are too many at a time."""
    global _receiving
    if _receiving >= MAX_UPLOADS:
        raise CapacityExceeded(
            "Too many references are being uploaded.", kind="uploads", retry_after_s=RETRY_AFTER_S
        )
    _receiving += 1
    try:
        yield
    finally:
        _receiving -= 1
