from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.drawing import grid, loss_plot
from training.memory import keep_freed_memory


def test_a_falling_loss_is_drawn_falling() -> None:
    """The dark curve starts high on the left and ends low on the right."""
    pixels = np.asarray(loss_plot([(step, 1 / (step + 1)) for step in range(400)], title="unet")).astype(int)
    rows, columns = np.nonzero((pixels[..., 2] > 150) & (pixels[..., 0] < 60))
    assert rows[columns < columns.min() + 20].mean() + 100 < rows[columns > columns.max() - 20].mean()


@pytest.mark.parametrize("losses", [[], [(0, 1.0)], [(0, 1.0), (10, 1.0)], [(0, 0.0), (1, 0.0)]])
def test_a_plot_of_hardly_anything_is_still_a_plot(losses: list[tuple[int, float]]) -> None:
    """The first minute of a run saves a plot too."""
    assert loss_plot(losses, title="vae").size == (640, 360)


def test_a_grid_shows_every_picture_in_reading_order() -> None:
    """Each enlarged, next to its caption, so that a glance shows what follows the words."""
    colours = ["red", "green", "blue"]
    sheet = grid([Image.new("RGB", (64, 64), one) for one in colours], colours, columns=2, scale=1)
    width, height = 64 + 6, 36 + 64 + 6
    assert sheet.size == (2 * width, 2 * height)
    middles = [sheet.getpixel((x * width + 35, y * height + 35)) for x, y in ((0, 0), (1, 0), (0, 1))]
    assert middles == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def test_keeping_memory_is_safe_to_ask_for_anywhere() -> None:
    """Also twice, and where the C library knows no such thing."""
    keep_freed_memory()
    keep_freed_memory()
