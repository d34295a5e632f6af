"""From what a caller wrote to a picture: a URL, a data URI or a storage path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import InvalidParameters, NotFound, ReferenceForbidden, ReferenceFrameError, StorageError
from ourvidz.jobs.urls import is_readable_by, scheme_of
from ourvidz.net.client import HttpResponse, RequestFailure
from ourvidz.references.data_uri import TOO_LARGE, data_uri_bytes
from ourvidz.references.decode import begins_a_picture, decode

UNFETCHED = "The reference could not be fetched."
"""All that is said of a URL: more would tell callers which of our neighbours listen on which port."""
FORBIDDEN = "A storage path must lie under the job's own user_id, in a bucket for references."

Fetch = Callable[[str, Callable[[bytes], bool]], HttpResponse | RequestFailure]
"""A GET of a stranger's URL; the second argument says by its first bytes whether a body is worth reading."""
Read = Callable[[str], bytes]
"""What is stored under a path: `NotFound`, `StorageError`, or `InvalidParameters` when it is not one."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a reference may be."""

    max_bytes: int
    max_pixels: int


class References:
    """Resolves references. Safe to share."""

    def __init__(self, fetch: Fetch, read: Read, limits: Limits) -> None:
        self._fetch = fetch
        self._read = read
        self._limits = limits

    def resolve(self, reference: str, *, user_id: str | None) -> Image:
        """The picture that a job of `user_id` refers to, as RGB and upright.

        `ReferenceForbidden` for a storage path of somebody else. `ReferenceFrameError` when it cannot be
        fetched, is no picture, is damaged, or is larger than the limits.
        """
        return decode(self._bytes(reference, user_id), max_pixels=self._limits.max_pixels)

    def _bytes(self, reference: str, user_id: str | None) -> bytes:
        scheme = scheme_of(reference)
        if scheme is None:
            return self._stored(reference, user_id)
        if scheme == "data":
            return data_uri_bytes(reference, max_bytes=self._limits.max_bytes)
        return self._fetched(reference)

    def _fetched(self, url: str) -> bytes:
        found = self._fetch(url, begins_a_picture)
        if isinstance(found, RequestFailure):
            raise ReferenceFrameError(UNFETCHED, field="reference")
        return found.body

    def _stored(self, path: str, user_id: str | None) -> bytes:
        # The door has looked too; a job may have been recorded before its rule was what it is now.
        if user_id is None or not is_readable_by(user_id, path):
            raise ReferenceForbidden(FORBIDDEN, field="reference")
        try:
            data = self._read(path)
        except (NotFound, StorageError, InvalidParameters) as failed:
            _log.warning("reference_not_read", reason=failed.message)
            raise ReferenceFrameError(UNFETCHED, field="reference") from failed
        if len(data) > self._limits.max_bytes:
            raise ReferenceFrameError(
                TOO_LARGE, field="reference", rule=f"at most {self._limits.max_bytes:,} bytes"
            )
        return data
