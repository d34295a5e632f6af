from __future__ import annotations

import struct

import pytest

from ourvidz.media.boxes import top_level, xmp_box, xmp_in

FTYP = struct.pack(">I4s4s", 12, b"ftyp", b"isom")


def test_boxes_are_listed_in_order() -> None:
    """Whether a file starts fast depends on nothing else."""
    assert list(top_level(FTYP + struct.pack(">I4s", 8, b"free") + xmp_box("<x/>")))[:2] == [
        ("ftyp", b"isom"),
        ("free", b""),
    ]


def test_large_and_open_ended_boxes_are_understood() -> None:
    """Files over 4 GiB have 64-bit sizes, and a last box may reach to the end of the file."""
    large = struct.pack(">I4sQ", 1, b"mdat", 20) + b"abcd"
    open_ended = struct.pack(">I4s", 0, b"mdat") + b"to the end"
    assert list(top_level(large + open_ended)) == [("mdat", b"abcd"), ("mdat", b"to the end")]


@pytest.mark.parametrize(
    "rest", [b"", b"\0\0\0", struct.pack(">I4s", 99, b"moov"), struct.pack(">I4s", 3, b"moov")]
)
def test_a_box_that_does_not_fit_ends_the_list(rest: bytes) -> None:
    """A truncated file must not send the reader in circles or beyond its end."""
    assert list(top_level(FTYP + rest)) == [("ftyp", b"isom")]


def test_an_xmp_packet_is_found_again() -> None:
    """The mark is only worth something if it can be read."""
    other = struct.pack(">I4s16s", 24, b"uuid", b"somebody else's.")
    assert xmp_in(FTYP + other + xmp_box("<x>é</x>")) == "<x>é</x>"
    assert xmp_in(FTYP + other) is None
