"""Previews of unfinished clips without the VAE: the middle frame, from a linear map of the latents to RGB."""

from __future__ import annotations

from functools import partial

import torch

from ourvidz import log
from ourvidz.pipelines.base import PreviewRenderer, Snapshot
from ourvidz.pipelines.previews import PATCHES, LatentPreviewer, calibration_image
from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor

_FRAMES = 9
"""Three latent frames: the VAE encodes the second one differently because it follows the first."""

_log = log.get(__name__)


class ClipPreviewer:
    """Previews for the latents of one VAE. The first latent frame stands for one frame and each later one for
    four, so they have separate maps to RGB."""

    def __init__(self, first: LatentPreviewer, later: LatentPreviewer) -> None:
        self._first = first
        self._later = later

    def snapshot(self, latents: torch.Tensor, velocity: torch.Tensor, sigma: float) -> Snapshot:
        """A snapshot of the finished clip's middle frame, as estimated in a step at noise level `sigma`.
        Latents and velocity are (1, channels, latent frames, rows, columns)."""
        middle = latents.shape[2] // 2
        previewer = self._later if middle else self._first

        def copy() -> PreviewRenderer:
            estimate = latents[0, :, middle] - sigma * velocity[0, :, middle]
            return partial(previewer.render, estimate.to("cpu", torch.float32, copy=True))

        return copy


@torch.no_grad()
def fit_clip_previewer(vae: VideoVAE) -> ClipPreviewer | None:
    """A previewer for this VAE, fitted to a still clip; None, which switches previews off, if that fails."""
    image = calibration_image(PATCHES)
    try:
        latents = vae.encode(image_tensor(image, *image.size), frames=_FRAMES)[0]
        return ClipPreviewer(LatentPreviewer(latents[:, 0], image), LatentPreviewer(latents[:, -1], image))
    except Exception:  # noqa: BLE001  the checkpoint is usable without previews
        _log.exception("previews_off")
        return None
