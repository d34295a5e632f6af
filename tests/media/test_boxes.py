"""MP4 boxes are listed, written and searched as ISO/IEC 14496-12 defines them."""

from __future__ import annotations

import struct

import pytest

from ourvidz.media.boxes import find_xmp, top_level_boxes, xmp_box

FTYP = struct.pack(">I4s4s", 12, b"ftyp", b"isom")


def test_boxes_are_listed_in_order() -> None:
    """Their order decides whether a player can start before the download ends."""
    assert list(top_level_boxes(FTYP + struct.pack(">I4s", 8, b"free") + xmp_box("<x/>")))[:2] == [
        ("ftyp", b"isom"),
        ("free", b""),
    ]


def test_boxes_with_64_bit_and_open_sizes_are_read() -> None:
    """Files over 4 GiB have 64-bit sizes, and a last box may reach to the end of the file."""
    large = struct.pack(">I4sQ", 1, b"mdat", 20) + b"abcd"
    open_ended = struct.pack(">I4s", 0, b"mdat") + b"to the end"
    assert list(top_level_boxes(large + open_ended)) == [("mdat", b"abcd"), ("mdat", b"to the end")]


@pytest.mark.parametrize(
    "rest", [b"", b"\0\0\0", struct.pack(">I4s", 99, b"moov"), struct.pack(">I4s", 3, b"moov")]
)
def test_a_box_that_does_not_fit_ends_the_list(rest: bytes) -> None:
    """A truncated file must cause neither an endless loop nor a read beyond its end."""
    assert list(top_level_boxes(FTYP + rest)) == [("ftyp", b"isom")]


def test_a_written_xmp_packet_is_found() -> None:
    """Other `uuid` boxes in the file are not mistaken for it."""
    other = struct.pack(">I4s16s", 24, b"uuid", b"somebody else's.")
    assert find_xmp(FTYP + other + xmp_box("<x>é</x>")) == "<x>é</x>"
    assert find_xmp(FTYP + other) is None
