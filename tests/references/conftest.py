"""Image files, among them small ones that declare huge sizes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

SaveImage = Callable[..., bytes]


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk with a valid checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_claiming(width: int, height: int, *between: bytes) -> bytes:
    """A PNG that declares this size and holds one compressed megabyte of zeros."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + data + chunk(b"IEND", b"")


def webp_claiming(width: int, height: int) -> bytes:
    """A few bytes of lossless WEBP that really hold this many pixels of one colour."""
    data = bytearray(encode(Image.new("RGB", (8, 8), "red"), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") & ~((1 << 28) - 1)
    data[at : at + 4] = (bits | (width - 1) | ((height - 1) << 14)).to_bytes(4, "little")
    return bytes(data)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with some bytes replaced."""
    return data[:at] + new + data[at + len(new) :]


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose frame header declares this size."""
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def tiff_claiming(width: int, height: int) -> bytes:
    """A small TIFF whose tags declare this size."""
    data = encode(Image.new("RGB", (7, 9)), "TIFF")
    for tag, old, new in ((256, 7, width), (257, 9, height)):
        for kind, form in ((3, "<HHIHH"), (4, "<HHII")):
            entry = struct.pack(form, tag, kind, 1, old, *([0] if kind == 3 else []))
            data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, new))
    return data


def many_scans(count: int) -> bytes:
    """A progressive JPEG that repeats one scan `count` times."""
    data = encode(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


BOMBS: dict[str, bytes] = {
    "png": png_claiming(60_000, 60_000),
    "png, one long row": png_claiming(2_000_000_000, 1),
    "webp of 36 bytes": webp_claiming(16_384, 16_384),
    "webp just over the limit": webp_claiming(8_000, 8_000),
    "jpeg": jpeg_claiming(65_500, 65_500),
    "tiff": tiff_claiming(100_000, 100_000),
    "gif": patched(encode(Image.new("P", (8, 8)), "GIF"), 6, b"\xff\xff\xff\xff"),
    "bmp": patched(encode(Image.new("RGB", (8, 8)), "BMP"), 18, struct.pack("<ii", 90_000, 90_000)),
    "png with a text of gigabytes": png_claiming(
        8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 << 20), 9))
    ),
    "png with a profile of gigabytes": png_claiming(
        8, 8, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(64 << 20), 9))
    ),
    "jpeg of a thousand scans": many_scans(1000),
}
"""Small files that would take much memory or time to decode."""


@pytest.fixture(scope="session")
def bombs() -> dict[str, bytes]:
    """Small files that would take much memory or time to decode."""
    return BOMBS


@pytest.fixture(scope="session")
def surplus() -> bytes:
    """A PNG of 8 x 8 px with a megabyte of pixel data."""
    return png_claiming(8, 8)


@pytest.fixture(scope="session")
def save() -> SaveImage:
    """The function that encodes an image."""
    return encode


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with the argument `bomb` once for each of `BOMBS`."""
    if "bomb" in metafunc.fixturenames:
        metafunc.parametrize("bomb", list(BOMBS.values()), ids=list(BOMBS))
