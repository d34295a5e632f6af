"""References that are contained in the payload: `data:` URIs (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from ourvidz.errors import ReferenceFrameError

MALFORMED = "The reference is not a data URI of a picture."
TOO_LARGE = "The reference is too large."

_HEAD = re.compile(r"data:image/[a-z0-9.+-]+(?:;[^,;]*)*", re.IGNORECASE)
_WHITE_SPACE = bytes.maketrans(b"", b""), b" \t\r\n\f"


def decode_data_uri(uri: str, *, max_bytes: int) -> bytes:
    """Decode a `data:image/…` URI, in base64 or percent-encoded, into bytes. Raises `ReferenceFrameError` if
    it is malformed, has another media type, or holds more than `max_bytes`."""
    head, comma, encoded = uri.partition(",")
    if not comma or not _HEAD.fullmatch(head):
        raise ReferenceFrameError(MALFORMED, field="reference", rule="data:image/TYPE[;base64],DATA")
    # A byte takes at most three characters, percent-encoded; base64 takes fewer.
    if len(encoded) > 3 * max_bytes + 4:
        raise _too_large(max_bytes)
    data = unquote_to_bytes(encoded)
    if head.rpartition(";")[2].strip().lower() == "base64":
        data = _decode_base64(data)
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _decode_base64(text: bytes) -> bytes:
    compact = text.translate(*_WHITE_SPACE).rstrip(b"=")
    try:
        return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
    except binascii.Error:
        raise ReferenceFrameError(MALFORMED, field="reference", rule="base64 after the comma") from None


def _too_large(max_bytes: int) -> ReferenceFrameError:
    return ReferenceFrameError(TOO_LARGE, field="reference", rule=f"at most {max_bytes:,} bytes")
