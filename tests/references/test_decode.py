"""Images are decoded upright, opaque and in RGB; every other file is an unusable reference."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ourvidz.errors import ReferenceFrameError
from ourvidz.references.decode import FORMATS, TOO_LARGE, UNREADABLE, WORKING_PX, decode, looks_like_image
from tests.properties import examples

Save = Callable[..., bytes]
MAX_PIXELS = 50_000_000
TOLERANCE = 12


def flag(width: int = 60, height: int = 40) -> Image.Image:
    """An image of four coloured quarters: red and green above blue and yellow."""
    image = Image.new("RGB", (width, height), "red")
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height // 2 - 1), "lime")
    draw.rectangle((0, height // 2, width // 2 - 1, height), "blue")
    draw.rectangle((width // 2, height // 2, width, height), "yellow")
    return image


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    """The colours in the middle of the four quarters, each channel rounded to 0 or 255."""
    width, height = image.size
    places = [(width // 4, height // 4), (3 * width // 4, height // 4), (width // 4, 3 * height // 4),
              (3 * width // 4, 3 * height // 4)]  # fmt: skip
    return [tuple(255 * (band > 127) for band in image.getpixel(place)) for place in places]  # type: ignore[misc, union-attr]


RED, LIME, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def decoding_error(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ReferenceFrameError) as refused:
        decode(data, max_pixels=max_pixels)
    assert refused.value.field == "reference"
    return refused.value.message


@pytest.mark.parametrize("kind", FORMATS)
def test_every_allowed_format_is_decoded(save: Save, kind: str) -> None:
    """Callers send the formats of phones and browsers."""
    data = save(flag(), kind)
    image = decode(data, max_pixels=MAX_PIXELS)
    assert (image.mode, image.size) == ("RGB", (60, 40))
    assert corners(image) == [RED, LIME, BLUE, YELLOW]
    assert looks_like_image(data[:32])


@pytest.mark.parametrize(
    "kind", ["PPM", "ICO", "TGA", "PCX", "PDF", "EPS", "JPEG2000", "DDS", "ICNS", "AVIF"]
)
def test_no_other_format_is_tried(save: Save, kind: str) -> None:
    """Every decoder is an attack surface; some of Pillow's start other programs."""
    data = save(flag(64, 64), kind)
    assert decoding_error(data) == UNREADABLE
    assert not looks_like_image(data[:32])


ORIENTATIONS = {
    1: [RED, LIME, BLUE, YELLOW],
    2: [LIME, RED, YELLOW, BLUE],
    3: [YELLOW, BLUE, LIME, RED],
    4: [BLUE, YELLOW, RED, LIME],
    5: [RED, BLUE, LIME, YELLOW],
    6: [BLUE, RED, YELLOW, LIME],
    7: [YELLOW, LIME, BLUE, RED],
    8: [LIME, YELLOW, RED, BLUE],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_exif_orientation_is_applied(save: Save, kind: str, orientation: int) -> None:
    """Phones store portraits sideways and note it in EXIF. The note is removed, so nothing rotates it
    again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(save(flag(), kind, exif=exif), max_pixels=MAX_PIXELS)
    assert corners(image) == ORIENTATIONS[orientation]
    assert image.size == ((60, 40) if orientation < 5 else (40, 60))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*" + b"\0\0\0\x08\xff\xff",
    ],
)
def test_a_damaged_exif_block_is_ignored(save: Save, exif: bytes) -> None:
    """Some editors write them, and the pixels are intact."""
    assert corners(decode(save(flag(), "JPEG", exif=exif), max_pixels=MAX_PIXELS))[0] == RED


def transparent(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """A fully transparent image of this mode, with the options to save it."""
    if mode == "P":
        return Image.new("RGB", (8, 8), "black").quantize(4), {"transparency": 0}
    if mode in ("RGB", "L"):
        return Image.new(mode, (8, 8), 0), {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    return Image.new(mode, (8, 8), (10, 0) if mode == "LA" else (200, 10, 10, 0)), {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_become_white(save: Save, mode: str) -> None:
    """Otherwise black, or a colour that was never visible, would steer the result."""
    source, options = transparent(mode)
    image = decode(save(source, "PNG", **options), max_pixels=MAX_PIXELS)
    assert (image.mode, image.getpixel((4, 4))) == ("RGB", (255, 255, 255))


def test_half_transparent_pixels_are_blended_with_white(save: Save) -> None:
    """Soft edges stay soft."""
    image = decode(save(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG"), max_pixels=MAX_PIXELS)
    red, green, blue = image.getpixel((4, 4))  # type: ignore[misc]
    assert (red, green) == (255, blue)
    assert abs(green - 127) <= 1


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF")])
@pytest.mark.parametrize("level", [0, 0x0101, 0x4040, 0x8080, 0xFFFF])
def test_16_bit_samples_are_scaled(save: Save, mode: str, kind: str, level: int) -> None:
    """Clipped at 255, every scanned image would be white."""
    image = decode(save(Image.new(mode, (4, 4), level), kind), max_pixels=MAX_PIXELS)
    assert image.getpixel((1, 1)) == (level >> 8,) * 3


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("YCbCr", (8, 8), (76, 85, 255)), "JPEG", (255, 0, 0)),
        (Image.new("L", (8, 8), 90), "JPEG", (90, 90, 90)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (8, 8), "teal").quantize(4), "GIF", (0, 128, 128)),
        (Image.new("RGB", (8, 8), "teal").quantize(4), "PNG", (0, 128, 128)),
    ],
    ids=["cmyk jpeg", "cmyk tiff", "ycbcr", "grey", "bilevel", "palette gif", "palette png"],
)
def test_every_colour_space_becomes_rgb(
    save: Save, image: Image.Image, kind: str, expected: tuple[int, ...]
) -> None:
    """The pipelines support no other."""
    image = decode(save(image, kind), max_pixels=MAX_PIXELS)
    assert image.mode == "RGB"
    bands = image.getpixel((4, 4))
    assert all(abs(a - b) <= TOLERANCE for a, b in zip(bands, expected, strict=True))  # type: ignore[arg-type]


def save_options(mode: str, kind: str) -> dict[str, Any]:
    """Options that save the metadata of cameras and editors, as far as the format supports it."""
    exif = Image.Exif()
    exif[0x010E] = "somebody's garden"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options: dict[str, Any] = {"comment": "somebody"} if kind in ("JPEG", "GIF") else {}
    if kind not in ("GIF", "BMP"):
        options |= {"exif": exif, "icc_profile": profile}
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Author", "somebody")
    return options | ({"dpi": (72, 72)} if mode != "P" else {"transparency": 0})


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGB", kind) for kind in FORMATS),
        *(("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("P", "GIF"), ("P", "PNG"), ("RGBA", "PNG")),
    ],
)
def test_all_metadata_is_removed(save: Save, mode: str, kind: str) -> None:
    """Encoders copy metadata of an image: a CMYK profile into an RGB file, or a location into the result."""
    image = decode(save(Image.new(mode, (60, 40)), kind, **save_options(mode, kind)), max_pixels=MAX_PIXELS)
    assert (image.mode, image.info) == ("RGB", {})
    assert dict(image.getexif()) == {}
    for format in ("PNG", "WEBP"):
        read = Image.open(io.BytesIO(save(image.crop((0, 0, 8, 8)), format)))
        assert not {"icc_profile", "exif", "Author", "comment", "xmp"} & set(read.info)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_decoded(save: Save, kind: str) -> None:
    """References are still images."""
    data = save(
        Image.new("RGB", (8, 8), "red"), kind, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]
    )
    red, _, blue = decode(data, max_pixels=MAX_PIXELS).getpixel((4, 4))  # type: ignore[misc]
    assert red > 200
    assert blue < 60


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_image_is_reduced(save: Save, kind: str) -> None:
    """No job needs more than 2048 px, and a photo of 20 megapixels takes much memory."""
    image = decode(save(flag(6150, 4100), kind, **save_options("RGB", kind)), max_pixels=MAX_PIXELS)
    assert image.info == {}
    assert WORKING_PX <= min(image.size) < 2 * WORKING_PX
    assert abs(image.width / image.height - 1.5) < 0.01
    assert corners(image) == [RED, LIME, BLUE, YELLOW]


def test_a_panorama_keeps_its_short_side(save: Save) -> None:
    """It is cropped to its middle, which must stay sharp."""
    assert decode(save(flag(9000, 1000), "JPEG"), max_pixels=MAX_PIXELS).size == (9000, 1000)


def test_the_pixel_limit_is_exact(save: Save) -> None:
    """A file at the limit is accepted, one pixel more is not."""
    data = save(flag(100, 50), "PNG")
    assert decode(data, max_pixels=5000).size == (100, 50)
    assert decoding_error(data, max_pixels=4999) == TOO_LARGE


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", bytes(5000), b"\xff" * 5000, b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        *(b"<html></html>", b"%PDF-1.7\n%%EOF", b"%!PS-Adobe-3.0\n", b"PK\x03\x04" + bytes(99), b"GIF89a"),
        *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"BM", b"II*\0"),
        *(b"\0\0\0\x18ftypmp42" + bytes(99), b"P6 9 9 255\n" + bytes(243), b"8BPS\0\x01" + bytes(99)),
        *(b"II*\0\x08\0\0\0\xff\xff" + bytes(99), b"MM\0*\0\0\0\x08\0\x01" + b"\xff" * 40),
        *(b"RIFF\xff\xff\xff\xffWEBPVP8X", b"\0\0\0\x1cftypavif"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_image_is_unreadable(data: bytes) -> None:
    """All have the same error, and none has that of a decoder."""
    assert decoding_error(data) == UNREADABLE


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_unreadable(save: Save, kind: str, share: float) -> None:
    """The grey of the missing part would steer the result."""
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    data = save(noise, kind)
    assert decoding_error(data[: int(len(data) * share)]) == UNREADABLE


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_samples_are_unreadable(save: Save, mode: str) -> None:
    """It is not defined which of their values is white."""
    assert decoding_error(save(Image.new(mode, (4, 4), 1), "TIFF")) == UNREADABLE


def test_a_decompression_bomb_is_rejected(bomb: bytes) -> None:
    """A few kilobytes that would take gigabytes or minutes."""
    assert len(bomb) < 2 << 20
    assert decoding_error(bomb) in (TOO_LARGE, UNREADABLE)


def test_pixel_data_beyond_the_declared_size_is_not_decoded(surplus: bytes) -> None:
    """Megabytes of zeros follow a header of 8 x 8 px; only the first rows are decoded."""
    assert decode(surplus, max_pixels=64).size == (8, 8)


PEAK = """
    import re, sys, warnings
    from pathlib import Path
    from ourvidz.errors import ReferenceFrameError
    from ourvidz.references.decode import decode

    warnings.simplefilter("ignore")
    files = [path.read_bytes() for path in map(Path, sys.argv[2:])]
    # Not getrusage: its peak is inherited from the process that started this one.
    peak_kib = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    before = peak_kib()
    for data in files:
        try:
            decode(data, max_pixels=int(sys.argv[1]))
        except ReferenceFrameError:
            print("refused", file=sys.stderr)
    print((peak_kib() - before) // 1024)
"""


def peak_mib(folder: Path, files: list[bytes], max_pixels: int) -> int:
    """How many MiB decoding these files adds to the peak memory of a new process."""
    paths = []
    for index, data in enumerate(files):
        paths.append(folder / f"{index}")
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(max_pixels), *map(str, paths)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(completed.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_decompression_bombs_take_little_memory(tmp_path: Path, bombs: dict[str, bytes]) -> None:
    """The declared size is checked before pixels are decoded."""
    assert peak_mib(tmp_path, list(bombs.values()), MAX_PIXELS) < 96


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_the_pixel_limit(tmp_path: Path, save: Save) -> None:
    """Up to 18 bytes per pixel, for the format that needs most."""
    side = 3000
    image = Image.new("RGBA", (side, side), (255, 0, 0, 128))
    files = [save(image, "PNG", compress_level=1), save(image, "WEBP", lossless=True, method=0)]
    files.append(save(Image.new("I;16", (side, side), 999), "PNG", compress_level=1))
    limit_mib = 18 * side * side / (1 << 20)
    assert peak_mib(tmp_path, files, side * side) < limit_mib + 48


SEEDS: list[bytes] = []


def seeds() -> list[bytes]:
    """One small file of each format."""
    if not SEEDS:
        for kind in FORMATS:
            file = io.BytesIO()
            flag(16, 12).save(file, kind)
            SEEDS.append(file.getvalue())
    return SEEDS


@examples(150, suppress_health_check=[HealthCheck.too_slow])
@given(
    which=st.integers(0, len(FORMATS) - 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_an_image_or_an_unusable_reference(
    which: int, changes: list[tuple[float, int]]
) -> None:
    """Decoders raise many exceptions; all become the same error."""
    data = bytearray(seeds()[which])
    for position, value in changes:
        data[int(position * len(data))] = value
    with suppress(ReferenceFrameError):
        assert decode(bytes(data), max_pixels=1_000_000).mode == "RGB"
