"""What those of Wan's transformers are told that were trained on pictures, beside latents and prompt.

An image-to-video transformer reads the given frames as further channels of the latents, and through an image
encoder. VACE (https://arxiv.org/abs/2503.07598) has further blocks that read a clip twice, what is to stay
and what is to be made anew, and the mask that tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image, Resampling

from ourvidz.pipelines.base import SourceVideo
from ourvidz.pipelines.wan.checkpoint import WanModel
from ourvidz.pipelines.wan.frames import SHRINK_TIME, Codec, around, fitted

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_SPREAD = (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's pictures are normalized with (Radford et al. 2021)."""
_HALF = 128
"""From here on a mask is white."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a transformer reads besides; None where it has no input for it.

    `channels` stand beside the latents' own, `control` is VACE's, both of (1, channels, latent frames, rows,
    columns), for VACE's `blocks` blocks; `image` is (pictures, tokens, width). The first `ahead` latent
    frames are pictures, and not of the clip.
    """

    channels: torch.Tensor | None = None
    image: torch.Tensor | None = None
    control: torch.Tensor | None = None
    blocks: int = 0
    ahead: int = 0

    def grown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a clip's latents with the frames ahead of it."""
        return (*shape[:2], shape[2] + self.ahead, *shape[3:])

    def inputs(self, latents: torch.Tensor, *, dtype: torch.dtype, control: float) -> dict[str, torch.Tensor]:
        """What the transformer is called with. `control` is how strongly VACE's blocks count, 0 to 1."""
        seen = latents if self.channels is None else torch.cat([latents, self.channels], dim=1)
        given = {"hidden_states": seen.to(dtype)}
        if self.image is not None:
            given["encoder_hidden_states_image"] = self.image.to(dtype)
        if self.control is not None:
            given["control_hidden_states"] = self.control.to(dtype)
            given["control_hidden_states_scale"] = torch.full(
                (self.blocks,), control, device=latents.device, dtype=dtype
            )
        return given


UNCONDITIONED = Condition()


def condition(
    model: WanModel,
    transformer: Any,
    source: SourceVideo,
    codec: Codec,
    shape: tuple[int, ...],
    *,
    look: Callable[[Sequence[Image]], torch.Tensor | None],
) -> Condition:
    """What this model is told of a source, for latents of `shape`. `look` asks its image encoder."""
    if model == "t2v":
        return UNCONDITIONED
    if model == "vace":
        control = vace_control(source, codec, shape)
        blocks = len(transformer.config.vace_layers)
        return Condition(control=control, blocks=blocks, ahead=len(source.reference_images))
    return Condition(image_channels(source.frames, codec, shape), look(list(source.frames.values())))


def image_channels(kept: dict[int, Image], codec: Codec, shape: tuple[int, ...]) -> torch.Tensor:
    """The channels of an image-to-video transformer: which frames are given, four of them to a latent frame,
    and the latents of a clip that is grey elsewhere. `kept` is pictures by frame, 0 or -1."""
    frames, (width, height) = codec.frames(shape), codec.size(shape)
    placed = {at: fitted(picture, width, height) for at, picture in kept.items()}
    latents = codec.encode_clip(around(placed, frames, width, height))
    given = latents.new_zeros(frames + SHRINK_TIME - 1)
    for at in kept:
        given[at] = 1
    # The first latent frame is one frame: its mark stands four times.
    given[:SHRINK_TIME] = given[0]
    marks = given.view(-1, SHRINK_TIME).T[None, :, :, None, None].expand(-1, -1, -1, *shape[3:])
    return torch.cat([marks, latents], dim=1)


def looked_at(pictures: Sequence[Image], encoder: Any) -> torch.Tensor:
    """What the image encoder says of the pictures: (pictures, tokens, width)."""
    side = encoder.config.image_size
    pixels = torch.stack([_pixels(picture, side) for picture in pictures])
    said = encoder(pixels.to(encoder.device, encoder.dtype), output_hidden_states=True)
    # Wan was trained on what the block before the last says.
    embedded: torch.Tensor = said.hidden_states[-2]
    return embedded


def vace_control(source: SourceVideo, codec: Codec, shape: tuple[int, ...]) -> torch.Tensor:
    """What VACE's blocks read of a clip: (1, 2 · latent channels + 64, latent frames, rows, columns), with a
    latent frame in front for each of the pictures of the source."""
    frames, (width, height) = codec.frames(shape), codec.size(shape)
    clip = around(_fitted(source.frames, frames, width, height), frames, width, height)
    anew = _mask(source.masks, frames, width, height)
    known = [codec.encode_clip(clip * (1 - anew)), codec.encode_clip(clip * anew)]
    control = torch.cat([*known, _marks(anew, shape).to(known[0])], dim=1)
    ahead = [_ahead(picture, control, codec, width, height) for picture in source.reference_images]
    return torch.cat([*ahead, control], dim=2)


def _fitted(given: dict[int, Image], frames: int, width: int, height: int) -> dict[int, torch.Tensor]:
    return {at: fitted(picture, width, height) for at, picture in given.items() if at < frames}


def _mask(masks: dict[int, Image], frames: int, width: int, height: int) -> torch.Tensor:
    """Where frames are to be made anew, (1, frames, height, width): 1 wherever nothing says otherwise."""
    anew = torch.ones(1, frames, height, width)
    for at, mask in masks.items():
        if at < frames:
            levels = np.asarray(ImageOps.fit(mask.convert("L"), (width, height), Resampling.NEAREST))
            anew[0, at] = torch.from_numpy((levels >= _HALF).astype(np.float32))
    return anew


def _marks(anew: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The mask at the size of the latents, its pixels as channels: (1, 64, latent frames, rows, columns).

    A latent frame takes the mask of one of its frames, the nearest to its middle, as in training: a single
    frame at either end leaves no trace here.
    """
    frames, (rows, columns) = anew.shape[1], shape[3:]
    high, wide = anew.shape[2] // rows, anew.shape[3] // columns
    cells = anew.view(frames, rows, high, columns, wide).permute(2, 4, 0, 1, 3).flatten(0, 1)
    marks: torch.Tensor = torch.nn.functional.interpolate(cells[None], size=shape[2:], mode="nearest-exact")
    return marks


def _ahead(picture: Image, control: torch.Tensor, codec: Codec, width: int, height: int) -> torch.Tensor:
    """One picture whose content the clip is to have, as VACE reads it: a frame that stays, and no mask."""
    whole = ImageOps.pad(picture.convert("RGB"), (width, height), Resampling.LANCZOS, color="white")
    known = codec.encode(fitted(whole, width, height))
    frame = torch.zeros_like(control[:, :, :1])
    frame[:, : known.shape[1]] = known
    return frame


def _pixels(picture: Image, side: int) -> torch.Tensor:
    """The middle of a picture as CLIP reads it, (3, side, side)."""
    square = ImageOps.fit(picture.convert("RGB"), (side, side), Resampling.BICUBIC)
    levels = (np.asarray(square, dtype=np.float32) / 255 - _MEAN) / _SPREAD
    return torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1)
