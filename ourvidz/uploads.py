"""Uploaded references: kept in the storage for a while, for jobs of the user who uploaded them.

Beside each file there is a marker in a folder that is named by the time at which both are deleted. So a
keeper finds what has expired without a list in the ledger, and looks at no other file of a bucket.
"""

from __future__ import annotations

import math
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ourvidz import log
from ourvidz.errors import NotFound, OurvidzError, ReferenceForbidden, StorageError
from ourvidz.storage.keys import UPLOADS

if TYPE_CHECKING:
    from ourvidz.storage.store import Store

BUCKET = "reference_images"
MARKER = b"upload"
GROUPS = 100
"""Into how many groups the files of one lifetime are divided; a group is deleted at once."""
LONGEST_GROUP_S = 3600

_PATH = re.compile(rf"{BUCKET}/([^/]+)/uploads/(([0-9]{{1,12}})-[0-9a-f]{{32}}\.(?:png|jpg))")
_decoding = threading.Lock()
"""One image is decoded at a time: that takes up to 18 bytes for each of its pixels."""
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored reference. `path` is what jobs name; `expires_at` is in seconds since 1970."""

    path: str
    width: int
    height: int
    size_bytes: int
    content_type: str
    expires_at: float


def store_upload(
    store: Store, data: bytes, *, user_id: str, now: float, ttl_s: float, max_bytes: int, max_pixels: int
) -> Upload:
    """Decode an untrusted image file, and store its pixels for the jobs of `user_id`.

    Kept until `ttl_s` seconds after `now` (seconds since 1970) at least. Raises `ReferenceFrameError` for a
    file that is no image, is damaged, or has too many pixels, `PayloadTooLarge` for one that cannot be
    stored within `max_bytes`, `StorageError`.
    """
    # Imported here: Pillow takes a control process longer to import than everything else of a request.
    from ourvidz.references.decode import decode
    from ourvidz.references.encode import encode

    with _decoding:
        image = encode(decode(data, max_pixels=max_pixels), max_bytes=max_bytes)
    group_s = min(max(1, int(ttl_s / GROUPS)), LONGEST_GROUP_S)
    expires_at = math.ceil((now + ttl_s) / group_s) * group_s
    name = f"{expires_at}-{secrets.token_hex(16)}.{image.extension}"
    path = f"{BUCKET}/{user_id}/uploads/{name}"
    # The marker first: a process that dies in between leaves no file that nobody deletes.
    store.put(_marker(expires_at, user_id, name), MARKER, content_type="application/octet-stream")
    store.put(path, image.data, content_type=image.content_type)
    return Upload(path, image.width, image.height, len(image.data), image.content_type, expires_at)


def delete_upload(store: Store, path: str, *, user_id: str) -> None:
    """Delete an uploaded reference of a user. Safe to call twice.

    Raises `NotFound` for a path that no upload can have, `ReferenceForbidden` for one of another user.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise NotFound("There is no uploaded reference under this path.", field="path", value=path)
    owner, name, expires_at = match.groups()
    if owner != user_id:
        raise ReferenceForbidden("The reference belongs to another user.", field="path")
    store.delete(path)
    store.delete(_marker(int(expires_at), owner, name))


def delete_expired(store: Store, *, now: float, renew: Callable[[], None]) -> int:
    """Delete the uploads whose time is over. Returns how many. `renew` is called before each deletion. Raises
    `StorageError` where the groups cannot be listed; a group that fails keeps no other."""
    deleted = 0
    for group in store.folders(UPLOADS):
        if not group.isdecimal() or int(group) > now:
            continue
        renew()
        try:
            deleted += _delete_group(store, group, renew)
        except StorageError as error:
            _log.warning("uploads_left", group=group, reason=error.message)
    return deleted


def _delete_group(store: Store, group: str, renew: Callable[[], None]) -> int:
    """Delete the uploads of one group, and its folder if none is left. Returns how many."""
    folder = f"{UPLOADS}/{group}"
    deleted = left = 0
    for marker in list(store.list_files(folder)):
        renew()
        user_id, _, name = marker.key.removeprefix(f"{folder}/").partition("/")
        try:
            if user_id and name:  # else a file of another program
                store.delete(f"{BUCKET}/{user_id}/uploads/{name}")
            store.delete(marker.key)
        except OurvidzError as error:
            # The marker remains, so that the file is not forgotten.
            left += 1
            _log.warning("upload_left", group=group, reason=error.message)
        else:
            deleted += 1
    if not left:
        store.delete_folder(folder)
    return deleted


def delete_markers(store: Store, user_id: str) -> None:
    """Delete the markers of a user's uploads, whose files are gone. Safe to call twice."""
    for group in store.folders(UPLOADS):
        store.delete_folder(f"{UPLOADS}/{group}/{user_id}")


def _marker(expires_at: int, user_id: str, name: str) -> str:
    return f"{UPLOADS}/{expires_at}/{user_id}/{name}"
