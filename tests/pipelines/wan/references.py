"""Reference images for the tests of Wan."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ourvidz.pipelines.base import ReferenceImages


def landscape_references() -> ReferenceImages:
    """A gradient of 96x64 px, not the aspect ratio of the clips; as end reference it is flipped."""
    columns, rows = np.meshgrid(np.arange(96), np.arange(64))
    image = Image.fromarray(np.stack([columns * 2, rows * 3, 255 - columns], axis=-1).astype(np.uint8))
    flipped = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return ReferenceImages(single=image, start=image, end=flipped)
