"""Resumable uploads to Supabase Storage: the TUS protocol, https://tus.io/protocols/resumable-upload

A file is sent in chunks. After a cut the server says how much it has, and the upload continues there.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import urlsplit

from ourvidz.errors import StorageError
from ourvidz.storage.supabase_api import Answer, SupabaseAPI, upload_s

CHUNK_BYTES = 6 << 20
"""What the API requires of every chunk except the last; a chunk that continues a cut one ends where that one
would have."""
MAX_STARTS = 3
"""How often one call begins an upload: the server may have dropped the unfinished one."""
PAUSES_S = (0.1, 0.5, 1.0, 2.0)
"""Longest pauses after failures in a row without progress, in seconds; one more ends the upload."""

_PATH = "/upload/resumable"
_VERSION = {"Tus-Resumable": "1.0.0"}
_GONE = frozenset({404, 410})
_OTHER_OFFSET = 409
_UNFINISHED = frozenset({_OTHER_OFFSET, 500})


class _UploadGone(Exception):
    """The server does not know this upload any more."""


def upload(api: SupabaseAPI, key: str, data: bytes, *, content_type: str) -> None:
    """Store `data` under `key`, replacing what was there; readers see the old bytes until the last chunk has
    arrived. After a cut at most one chunk is sent again. Raises `StorageError`."""
    for _ in range(MAX_STARTS):
        upload_path = _create(api, key, len(data), content_type)
        try:
            return _send(api, key, upload_path, data)
        except _UploadGone:
            continue
    raise StorageError(f"{key} could not be written: the storage drops its unfinished upload.")


def _create(api: SupabaseAPI, key: str, size: int, content_type: str) -> str:
    """Begin an upload and return its path below the API."""
    bucket, _, name = key.partition("/")
    headers = {
        **_VERSION,
        "Upload-Length": str(size),
        "Upload-Metadata": _metadata({"bucketName": bucket, "objectName": name, "contentType": content_type}),
        "x-upsert": "true",
    }
    answer = api.send("POST", _PATH, body=b"", headers=headers, upload=True)
    if answer.key_refused and api.leave_upload_host():
        # The storage host has no gateway, which may be what understands the key.
        answer = api.send("POST", _PATH, body=b"", headers=headers, upload=True)
    # Of the URL only the id counts: proxies change the rest, and the key must go to no other host.
    upload_id = urlsplit(answer.headers.get("location", "")).path.rstrip("/").rpartition("/")[2]
    if answer.status != 201 or not upload_id:
        raise _failed(key, answer)
    return f"{_PATH}/{upload_id}"


def _send(api: SupabaseAPI, key: str, upload_path: str, data: bytes) -> None:
    """Send the chunks. Raises `_UploadGone` if the server has dropped the upload, `StorageError` after
    several failures without progress."""
    offset, furthest, failures = 0, 0, 0
    while True:
        end = min(len(data), offset - offset % CHUNK_BYTES + CHUNK_BYTES)
        answer = _patch(api, upload_path, data[offset:end], offset)
        received = _offset(answer)
        if received == end == len(data):
            return
        if answer.status in _UNFINISHED and offset == len(data):
            # The server has all of it, but whether it has made a file of it is not known.
            raise _UploadGone
        while received is None:
            if answer.status in _GONE:
                raise _UploadGone
            refused = not (answer.ok or answer.temporary or answer.status == _OTHER_OFFSET)
            if refused or failures == len(PAUSES_S):
                raise _failed(key, answer)
            api.pause(PAUSES_S[failures])
            failures += 1
            answer = api.send("HEAD", upload_path, headers=_VERSION, repeat=False, upload=True)
            received = _offset(answer)
        if received > len(data):
            raise _failed(key, answer)
        offset = received
        if offset > furthest:
            furthest, failures = offset, 0
        elif failures == len(PAUSES_S):
            raise _failed(key, answer)
        else:
            # A server, or what is in front of it, that takes a chunk and keeps nothing of it.
            api.pause(PAUSES_S[failures])
            failures += 1


def _patch(api: SupabaseAPI, upload_path: str, chunk: bytes, offset: int) -> Answer:
    """Send one chunk. An empty one at the end makes the server finish an upload whose last answer was
    lost."""
    headers = {
        **_VERSION,
        "Content-Type": "application/offset+octet-stream",
        "Upload-Offset": str(offset),
        "x-upsert": "true",
    }
    return api.send(
        "PATCH",
        upload_path,
        body=chunk,
        headers=headers,
        timeout_s=upload_s(len(chunk)),
        repeat=False,
        resend=False,
        upload=True,
    )


def _offset(answer: Answer) -> int | None:
    """How many bytes of the upload the server has; None if the answer does not say it."""
    value = answer.headers.get("upload-offset", "")
    return int(value) if answer.ok and value.isascii() and value.isdecimal() else None


def _metadata(values: Mapping[str, str]) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items())


def _failed(key: str, answer: Answer) -> StorageError:
    return StorageError(f"{key} could not be written: {answer.reason}.")
