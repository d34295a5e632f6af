"""References that are written out in the payload: `data:` URIs (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from ourvidz.errors import ReferenceFrameError

MALFORMED = "The reference is not a data URI of a picture."
TOO_LARGE = "The reference is too large."

_HEAD = re.compile(r"data:image/[a-z0-9.+-]+(?:;[^,;]*)*", re.IGNORECASE)
_WHITE = bytes.maketrans(b"", b""), b" \t\r\n\f"


def data_uri_bytes(uri: str, *, max_bytes: int) -> bytes:
    """The bytes in a `data:image/…` URI, base64 or percent-encoded. `ReferenceFrameError` when it is
    malformed, is no picture by its own word, or holds more than `max_bytes`."""
    head, comma, written = uri.partition(",")
    if not comma or not _HEAD.fullmatch(head):
        raise ReferenceFrameError(MALFORMED, field="reference", rule="data:image/TYPE[;base64],DATA")
    # Three characters a byte at most, percent-encoded; base64 needs fewer.
    if len(written) > 3 * max_bytes + 4:
        raise _too_large(max_bytes)
    data = unquote_to_bytes(written)
    if head.rpartition(";")[2].strip().lower() == "base64":
        data = _from_base64(data)
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _from_base64(text: bytes) -> bytes:
    packed = text.translate(*_WHITE).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise ReferenceFrameError(MALFORMED, field="reference", rule="base64 after the comma") from None


def _too_large(max_bytes: int) -> ReferenceFrameError:
    return ReferenceFrameError(TOO_LARGE, field="reference", rule=f"at most {max_bytes:,} bytes")
