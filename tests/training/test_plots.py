from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.allocator import keep_freed_memory
from training.plots import grid, loss_plot


def test_a_falling_loss_is_a_falling_curve() -> None:
    """The dark curve starts high on the left and ends low on the right."""
    pixels = np.asarray(loss_plot([(step, 1 / (step + 1)) for step in range(400)], title="unet")).astype(int)
    rows, columns = np.nonzero((pixels[..., 2] > 150) & (pixels[..., 0] < 60))
    assert rows[columns < columns.min() + 20].mean() + 100 < rows[columns > columns.max() - 20].mean()


@pytest.mark.parametrize("losses", [[], [(0, 1.0)], [(0, 1.0), (10, 1.0)], [(0, 0.0), (1, 0.0)]])
def test_a_plot_of_few_losses_has_its_full_size(losses: list[tuple[int, float]]) -> None:
    """A run saves its plot from the first minute on."""
    assert loss_plot(losses, title="vae").size == (640, 360)


def test_a_grid_shows_every_image_in_reading_order() -> None:
    """Images are compared with their captions by position."""
    colours = ["red", "green", "blue"]
    sheet = grid([Image.new("RGB", (64, 64), one) for one in colours], colours, columns=2, scale=1)
    width, height = 64 + 6, 36 + 64 + 6
    assert sheet.size == (2 * width, 2 * height)
    centres = [sheet.getpixel((x * width + 35, y * height + 35)) for x, y in ((0, 0), (1, 0), (0, 1))]
    assert centres == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def test_allocator_settings_can_be_repeated() -> None:
    """Also without glibc, where they do nothing."""
    keep_freed_memory()
    keep_freed_memory()
