"""References are cropped and resized to the rendered size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ourvidz.pipelines.sizes import center_crop
from ourvidz.pipelines.wan.vae import image_tensor
from tests.pipelines.helpers import difference


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((640, 480), (64, 64)),
        ((480, 640), (128, 64)),
        ((10, 10), (2048, 2048)),
        ((1, 5000), (64, 64)),
        ((5000, 1), (64, 128)),
    ],
)
def test_the_result_has_exactly_the_target_size(size: tuple[int, int], target: tuple[int, int]) -> None:
    """A pipeline that gets another size fails deep inside."""
    assert center_crop(Image.new("RGB", size), *target).size == target


def test_the_centre_is_kept_without_distortion() -> None:
    """A circle stays a circle; equal parts are cut off on both sides."""
    wide = Image.new("RGB", (300, 100), "white")
    draw = ImageDraw.Draw(wide)
    draw.ellipse((125, 25, 174, 74), "black")
    draw.rectangle((0, 0, 20, 99), "red")
    cropped = center_crop(wide, 50, 50)
    assert cropped.getpixel((1, 1)) == (255, 255, 255)
    dark = cropped.convert("L").point(lambda value: 255 * (value < 128))
    left, top, right, bottom = dark.getbbox()  # type: ignore[misc]
    assert abs((right - left) - (bottom - top)) <= 2
    assert abs((left + right) / 2 - 25) <= 1


def test_an_image_of_the_target_size_keeps_its_pixels() -> None:
    """An exact copy of strength 0 is exactly the reference."""
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    assert center_crop(image, 64, 64).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_the_result_is_rgb(mode: str) -> None:
    """Both families read three channels."""
    assert center_crop(Image.new(mode, (30, 20)), 16, 16).mode == "RGB"


def test_wan_crops_references_as_sdxl_does() -> None:
    """Both report the same resize policy."""
    image = Image.effect_noise((90, 50), 90).convert("RGB")
    levels = ((image_tensor(image, 64, 48) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert difference(levels, np.asarray(center_crop(image, 64, 48))) == 0
