"""A reference fills the picture it shapes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from ourvidz.pipelines.sizes import center_crop
from ourvidz.pipelines.wan.vae import image_tensor


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        ((640, 480), (64, 64)),
        ((480, 640), (128, 64)),
        ((10, 10), (2048, 2048)),
        ((1, 5000), (64, 64)),
        ((5000, 1), (64, 128)),
    ],
)
def test_the_size_is_exactly_the_one_asked_for(size: tuple[int, int], asked: tuple[int, int]) -> None:
    """A pipeline that gets another size fails deep inside."""
    assert center_crop(Image.new("RGB", size), *asked).size == asked


def test_the_middle_is_kept_and_nothing_is_stretched() -> None:
    """A circle stays a circle; what is cut off is cut off evenly."""
    wide = Image.new("RGB", (300, 100), "white")
    draw = ImageDraw.Draw(wide)
    draw.ellipse((125, 25, 174, 74), "black")
    draw.rectangle((0, 0, 20, 99), "red")
    found = center_crop(wide, 50, 50)
    assert found.getpixel((1, 1)) == (255, 255, 255)
    dark = found.convert("L").point(lambda value: 255 * (value < 128))
    left, top, right, bottom = dark.getbbox()  # type: ignore[misc]
    assert abs((right - left) - (bottom - top)) <= 2
    assert abs((left + right) / 2 - 25) <= 1


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    """An exact copy without denoising is exactly the reference."""
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    assert center_crop(image, 64, 64).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_what_comes_out_is_rgb(mode: str) -> None:
    """Both families read three bands."""
    assert center_crop(Image.new(mode, (30, 20)), 16, 16).mode == "RGB"


def test_clips_cut_their_references_as_pictures_do() -> None:
    """Both report the same policy, so one reference has one middle."""
    image = Image.effect_noise((90, 50), 90).convert("RGB")
    levels = (image_tensor(image, 64, 48) + 1) * 127.5
    cut = torch.tensor(list(center_crop(image, 64, 48).tobytes())).reshape(48, 64, 3).permute(2, 0, 1)
    assert torch.equal(levels.round().int(), cut.int())
