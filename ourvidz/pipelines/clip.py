"""Input images of CLIP's vision encoder."""

from __future__ import annotations

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image, Resampling

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training images, per channel (Radford et al. 2021, https://arxiv.org/abs/2103.00020)."""


def clip_pixels(image: Image, side_px: int) -> torch.Tensor:
    """The central square of an image as normalized pixels, (3, side_px, side_px), float32."""
    square = ImageOps.fit(image.convert("RGB"), (side_px, side_px), Resampling.BICUBIC)
    levels = (np.asarray(square, dtype=np.float32) / 255 - _MEAN) / _STD
    return torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1)
