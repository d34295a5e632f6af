"""Resolves references (a URL, a data URI or a storage path) to images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ourvidz import log
from ourvidz.errors import InvalidParameters, NotFound, ReferenceForbidden, ReferenceFrameError, StorageError
from ourvidz.jobs.urls import is_readable_by, scheme_of
from ourvidz.net.client import RequestFailure
from ourvidz.net.fetch import Download
from ourvidz.references.data_uri import TOO_LARGE, decode_data_uri
from ourvidz.references.decode import decode, looks_like_image

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_FETCHED = "The reference could not be fetched."
"""The only message about a URL: details would let callers scan the ports of our network."""
FORBIDDEN = "A storage path must lie under the job's own user_id, in a bucket for references."

Fetch = Callable[[str, Callable[[bytes], bool]], Download | RequestFailure]
"""Fetches an untrusted URL; the second argument decides by its first bytes whether a body is read."""
Read = Callable[[str, int], bytes]
"""Reads a storage path, at most so many bytes. Raises `NotFound`, `StorageError`, or `InvalidParameters` if
it is malformed."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """The largest reference that is accepted: the size of its file, and width x height."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class ResolvedReference:
    """The image of a reference, in RGB and upright. `tries`: how many requests its download took; None if
    nothing was downloaded."""

    image: Image
    tries: int | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    body: bytes
    tries: int | None = None


class ReferenceResolver:
    """Resolves references. Safe to share between threads."""

    def __init__(self, fetch: Fetch, read: Read, limits: ReferenceLimits) -> None:
        self._fetch = fetch
        self._read = read
        self._limits = limits

    def resolve(self, reference: str, *, user_id: str | None) -> ResolvedReference:
        """The image that a job of `user_id` refers to.

        Raises `ReferenceForbidden` for a storage path of another user, `ReferenceFrameError` if the reference
        cannot be fetched, is no image, is damaged, or exceeds the limits.
        """
        loaded = self._load(reference, user_id)
        return ResolvedReference(decode(loaded.body, max_pixels=self._limits.max_pixels), loaded.tries)

    def _load(self, reference: str, user_id: str | None) -> _Loaded:
        """The bytes of a reference: a data URI, a URL, or a storage path of the user."""
        scheme = scheme_of(reference)
        if scheme is None:
            return _Loaded(self._load_stored(reference, user_id))
        if scheme == "data":
            return _Loaded(decode_data_uri(reference, max_bytes=self._limits.max_bytes))
        return self._load_url(reference)

    def _load_url(self, url: str) -> _Loaded:
        result = self._fetch(url, looks_like_image)
        if isinstance(result, RequestFailure):
            raise ReferenceFrameError(NOT_FETCHED, field="reference")
        return _Loaded(result.body, result.tries)

    def _load_stored(self, path: str, user_id: str | None) -> bytes:
        """Read a storage path of the user. Raises `ReferenceForbidden` or `ReferenceFrameError`."""
        # Checked at submission too, but a job may have been recorded before the rule was what it is now.
        if user_id is None or not is_readable_by(user_id, path):
            raise ReferenceForbidden(FORBIDDEN, field="reference")
        try:
            data = self._read(path, self._limits.max_bytes + 1)
        except (NotFound, StorageError, InvalidParameters) as error:
            _log.warning("reference_not_read", reason=error.message)
            raise ReferenceFrameError(NOT_FETCHED, field="reference") from error
        if len(data) > self._limits.max_bytes:
            raise ReferenceFrameError(
                TOO_LARGE, field="reference", rule=f"at most {self._limits.max_bytes:,} bytes"
            )
        return data
