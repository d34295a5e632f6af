"""Extra transformer inputs of the image-to-video and VACE checkpoints.

An image-to-video transformer receives the known frames as additional latent channels, and their CLIP
embeddings. VACE (https://arxiv.org/abs/2503.07598) has additional blocks whose input is a control video: the
part to keep, the part to generate, and the mask that separates them.
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
from ourvidz.pipelines.clip import clip_pixels
from ourvidz.pipelines.wan.checkpoint import WanModel
from ourvidz.pipelines.wan.vae import TEMPORAL_SCALE, VideoVAE, grey_clip, image_tensor

_WHITE_FROM = 128
"""Mask levels from here on count as white."""


@dataclass(frozen=True, slots=True)
class ExtraInputs:
    """Transformer inputs beside latents, timestep and prompt; None for those that the model does not have.

    `condition_channels` are concatenated to the latents' channels; `control` is the input of VACE's
    `vace_layers` blocks. Both are (1, channels, latent frames, rows, columns). `image_embeds` are
    (images, tokens, width). The first `reference_frames` latent frames are VACE's reference images, not part
    of the clip.
    """

    condition_channels: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    control: torch.Tensor | None = None
    vace_layers: int = 0
    reference_frames: int = 0

    def latents_shape(self, clip_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latents to denoise: those of the clip, preceded by the reference frames."""
        return (*clip_shape[:2], clip_shape[2] + self.reference_frames, *clip_shape[3:])

    def model_inputs(
        self, latents: torch.Tensor, *, dtype: torch.dtype, control_scale: float
    ) -> dict[str, torch.Tensor]:
        """Keyword arguments of the transformer, except timestep and prompt. `control_scale` (0 to 1) is the
        weight of VACE's blocks."""
        hidden = latents
        if self.condition_channels is not None:
            hidden = torch.cat([latents, self.condition_channels], dim=1)
        inputs = {"hidden_states": hidden.to(dtype)}
        if self.image_embeds is not None:
            inputs["encoder_hidden_states_image"] = self.image_embeds.to(dtype)
        if self.control is not None:
            inputs["control_hidden_states"] = self.control.to(dtype)
            inputs["control_hidden_states_scale"] = torch.full(
                (self.vace_layers,), control_scale, device=latents.device, dtype=dtype
            )
        return inputs


NO_EXTRA_INPUTS = ExtraInputs()


def extra_inputs(
    model: WanModel,
    transformer: Any,
    source: SourceVideo,
    vae: VideoVAE,
    shape: tuple[int, ...],
    *,
    encode_images: Callable[[Sequence[Image]], torch.Tensor | None],
) -> ExtraInputs:
    """The extra inputs of this model for a source video and clip latents of `shape`.

    `encode_images` returns the image embeddings, or None for a checkpoint without an image encoder.
    """
    if model == "t2v":
        return NO_EXTRA_INPUTS
    if model == "vace":
        control = vace_control(source, vae, shape)
        layers = len(transformer.config.vace_layers)
        return ExtraInputs(control=control, vace_layers=layers, reference_frames=len(source.reference_images))
    channels = image_condition_channels(source.frames, vae, shape)
    return ExtraInputs(channels, encode_images(list(source.frames.values())))


def image_condition_channels(images: dict[int, Image], vae: VideoVAE, shape: tuple[int, ...]) -> torch.Tensor:
    """The condition channels of an image-to-video transformer, (1, 4 + latent channels, latent frames, rows,
    columns).

    Four mask channels mark the frames of `images`; the others are the latents of a clip that shows `images`
    and is grey elsewhere. `images` are by frame number, 0 or -1.
    """
    frames, (width, height) = vae.num_frames(shape), vae.size(shape)
    tensors = {frame: image_tensor(image, width, height) for frame, image in images.items()}
    latents = vae.encode_clip(grey_clip(tensors, frames, width, height))
    image_frames = latents.new_zeros(frames + TEMPORAL_SCALE - 1)
    for frame in images:
        image_frames[frame] = 1
    # The first latent frame stands for one frame only: its mark is repeated four times.
    image_frames[:TEMPORAL_SCALE] = image_frames[0]
    mask = image_frames.view(-1, TEMPORAL_SCALE).T[None, :, :, None, None].expand(-1, -1, -1, *shape[3:])
    return torch.cat([mask, latents], dim=1)


def encode_images(images: Sequence[Image], encoder: Any) -> torch.Tensor:
    """The CLIP embeddings of images, (images, tokens, width), on the encoder's device."""
    side = encoder.config.image_size
    pixels = torch.stack([clip_pixels(image, side) for image in images])
    output = encoder(pixels.to(encoder.device, encoder.dtype), output_hidden_states=True)
    # Wan was trained on the output of the last block but one.
    embeds: torch.Tensor = output.hidden_states[-2]
    return embeds


def vace_control(source: SourceVideo, vae: VideoVAE, shape: tuple[int, ...]) -> torch.Tensor:
    """The input of VACE's blocks, (1, 2 · latent channels + 64, latent frames, rows, columns), preceded by
    one latent frame for each reference image."""
    frames, (width, height) = vae.num_frames(shape), vae.size(shape)
    tensors = {
        frame: image_tensor(image, width, height) for frame, image in source.frames.items() if frame < frames
    }
    clip = grey_clip(tensors, frames, width, height)
    mask = _generation_mask(source.masks, frames, width, height)
    latents = [vae.encode_clip(clip * (1 - mask)), vae.encode_clip(clip * mask)]
    control = torch.cat([*latents, _mask_channels(mask, shape).to(latents[0])], dim=1)
    references = [_reference_frame(image, control, vae, width, height) for image in source.reference_images]
    return torch.cat([*references, control], dim=2)


def _generation_mask(masks: dict[int, Image], frames: int, width: int, height: int) -> torch.Tensor:
    """The areas to generate, (1, frames, height, width): 1 where a mask is white and in frames without
    one."""
    generated = torch.ones(1, frames, height, width)
    for frame, mask in masks.items():
        if frame < frames:
            levels = np.asarray(ImageOps.fit(mask.convert("L"), (width, height), Resampling.NEAREST))
            generated[0, frame] = torch.from_numpy((levels >= _WHITE_FROM).astype(np.float32))
    return generated


def _mask_channels(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The mask at the size of the latents, the pixels of each latent as channels: (1, 64, latent frames,
    rows, columns).

    Each latent frame takes the mask of one of its frames, the nearest to its middle, as in training. So a
    mask of a single frame at either end has no effect here.
    """
    frames, (rows, columns) = mask.shape[1], shape[3:]
    high, wide = mask.shape[2] // rows, mask.shape[3] // columns
    cells = mask.view(frames, rows, high, columns, wide).permute(2, 4, 0, 1, 3).flatten(0, 1)
    channels: torch.Tensor = torch.nn.functional.interpolate(
        cells[None], size=shape[2:], mode="nearest-exact"
    )
    return channels


def _reference_frame(
    image: Image, control: torch.Tensor, vae: VideoVAE, width: int, height: int
) -> torch.Tensor:
    """The latent frame of one reference image for VACE: its latents as a part to keep, without a mask. The
    image is scaled to fit and padded with white."""
    padded = ImageOps.pad(image.convert("RGB"), (width, height), Resampling.LANCZOS, color="white")
    latents = vae.encode(image_tensor(padded, width, height))
    frame = torch.zeros_like(control[:, :, :1])
    frame[:, : latents.shape[1]] = latents
    return frame
