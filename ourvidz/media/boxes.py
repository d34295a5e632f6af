"""The boxes that an MP4 file is made of (ISO/IEC 14496-12, section 4.2)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

XMP = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
"""What XMP's own `uuid` box begins with (XMP specification, part 3, MPEG-4)."""

_HEADER = struct.Struct(">I4s")
_LARGE = struct.Struct(">Q")


def top_level(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every box of a file. Ends at the first that does not fit into the file."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, name = _HEADER.unpack_from(data, at)
        begins = at + _HEADER.size
        if size == 1 and begins + _LARGE.size <= len(data):
            (size,) = _LARGE.unpack_from(data, begins)
            begins += _LARGE.size
        ends = len(data) if size == 0 else at + size
        if not begins <= ends <= len(data):
            return
        yield name.decode("latin-1"), data[begins:ends]
        at = ends


def xmp_box(packet: str) -> bytes:
    """The box that carries an XMP packet. Put at the end of a file, it moves nothing that others point to."""
    content = XMP + packet.encode()
    return _HEADER.pack(_HEADER.size + len(content), b"uuid") + content


def xmp_in(data: bytes) -> str | None:
    """The XMP packet of a file; None when it has none."""
    for name, content in top_level(data):
        if name == "uuid" and content.startswith(XMP):
            return content[len(XMP) :].decode("utf-8", "replace")
    return None
