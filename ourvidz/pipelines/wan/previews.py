"""What an unfinished clip looks like, without the VAE: its middle frame, from colours fitted to latents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ourvidz import log
from ourvidz.pipelines.base import PreviewRenderer
from ourvidz.pipelines.previews import LatentColours, patchwork
from ourvidz.pipelines.wan.frames import Codec, fitted

_PATCHES = 8
_FRAMES = 9
"""Three latent frames: the second one still remembers that it comes after the first."""

_log = log.get(__name__)


class ClipColours:
    """Colours of the latents of one VAE. The first latent frame stands for one frame and each of the others
    for four, so they have colours of their own."""

    def __init__(self, first: LatentColours, later: LatentColours) -> None:
        self._first = first
        self._later = later

    def take(
        self, latents: torch.Tensor, velocity: torch.Tensor, level: float
    ) -> Callable[[], PreviewRenderer]:
        """Copies the middle frame of the clip that a step at noise level `level` leads to, to be drawn
        elsewhere. Latents and velocity are (1, channels, latent frames, rows, columns)."""
        middle = latents.shape[2] // 2
        colours = self._later if middle else self._first

        def copy() -> PreviewRenderer:
            guess = latents[0, :, middle] - level * velocity[0, :, middle]
            return partial(colours.picture, guess.to("cpu", torch.float32, copy=True))

        return copy


@torch.no_grad()
def learn_clip_colours(codec: Codec) -> ClipColours | None:
    """The colours of one VAE's latents, from a still clip; None, and no previews, where this VAE does not
    let them be learned."""
    known = patchwork(_PATCHES)
    try:
        latents = codec.encode(fitted(known, *known.size), frames=_FRAMES)[0]
        return ClipColours(LatentColours(latents[:, 0], known), LatentColours(latents[:, -1], known))
    except Exception:  # noqa: BLE001  previews are a courtesy: the checkpoint is of use without them
        _log.exception("previews_off")
        return None
