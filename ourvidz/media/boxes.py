"""Reading and writing the boxes of MP4 files (ISO/IEC 14496-12, section 4.2)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

XMP_UUID = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
"""Identifies the `uuid` box that holds an XMP packet (XMP specification, part 3, MPEG-4)."""

_HEADER = struct.Struct(">I4s")
_SIZE_64 = struct.Struct(">Q")


def top_level_boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield type and content of each top-level box. Stops at the first box that the file truncates."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, box_type = _HEADER.unpack_from(data, offset)
        start = offset + _HEADER.size
        if size == 1 and start + _SIZE_64.size <= len(data):
            (size,) = _SIZE_64.unpack_from(data, start)
            start += _SIZE_64.size
        end = len(data) if size == 0 else offset + size
        if not start <= end <= len(data):
            return
        yield box_type.decode("latin-1"), data[start:end]
        offset = end


def xmp_box(packet: str) -> bytes:
    """A `uuid` box with an XMP packet, to be appended to a file: there it shifts no byte that an index in the
    file points to."""
    content = XMP_UUID + packet.encode()
    return _HEADER.pack(_HEADER.size + len(content), b"uuid") + content


def find_xmp(data: bytes) -> str | None:
    """The XMP packet of an MP4 file; None if it has none."""
    for box_type, content in top_level_boxes(data):
        if box_type == "uuid" and content.startswith(XMP_UUID):
            return content[len(XMP_UUID) :].decode("utf-8", "replace")
    return None
