"""IP-Adapter: conditions the UNet on a reference image's style, composition or character.

Which attention blocks see the image decides what is taken from it: the deepest blocks on the way down
determine composition, the first ones on the way up style (InstantStyle, https://arxiv.org/abs/2404.02733).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from PIL.Image import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from ourvidz.errors import ModelLoadError
from ourvidz.hub.manifest import mark_in_use
from ourvidz.jobs.job import ReferenceType
from ourvidz.pipelines import weight_kinds
from ourvidz.pipelines.clip import clip_pixels
from ourvidz.pipelines.folder_weights import TRANSFORMERS_WEIGHTS, require_weights
from ourvidz.pipelines.tensor_cache import TensorCache, cache_key, image_digest

_ADAPTER_PROCESSORS = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The adapter's `.safetensors` file, and the folder of the CLIP image encoder it was trained with."""

    weights: Path
    encoder: Path


class IPAdapter:
    """An IP-Adapter in the UNet of one loaded pipeline. Its scale is 0 until `set_scale` is called. `cache`
    keeps encoded images under the name of the loaded `weights`, among them those of adapter and encoder."""

    def __init__(
        self,
        pipe: diffusers.StableDiffusionXLPipeline,
        files: AdapterFiles,
        cache: TensorCache | None = None,
        *,
        weights: str = "",
    ) -> None:
        mark_in_use(files.weights)
        self._cache = cache or TensorCache()
        self._weights = weights
        self._unet = pipe.unet
        self._device: torch.device = pipe._execution_device
        self.encoder = _load_encoder(files.encoder).to(self._device, pipe.unet.dtype)
        pipe.unet._load_ip_adapter_weights([_load_weights(files.weights)], low_cpu_mem_usage=False)
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        self._pooled = isinstance(projection, ImageProjection)
        self.set_scale(None, 0.0)
        side = self._side_px
        self._zero_embeds = torch.zeros_like(self._embed(torch.zeros(1, 3, side, side)))
        self._check_encoder(files)

    def set_scale(self, reference_type: ReferenceType | None, scale: float) -> None:
        """Set the scale (0 to 1) of the attention blocks for `reference_type`, and 0 for all others; None
        sets all of them to 0."""
        prefixes = () if reference_type is None else attention_block_prefixes(self._unet)[reference_type]
        for name, processor in self._unet.attn_processors.items():
            if isinstance(processor, _ADAPTER_PROCESSORS):
                processor.scale = [scale if name.startswith(prefixes) and prefixes else 0.0]

    def image_embeds(self, image: Image | None, images: int, *, guided: bool) -> list[torch.Tensor]:
        """The UNet's `image_embeds` for a batch of `images` images: one tensor (rows, 1, …) with `images`
        rows, or twice as many, the unconditional ones first, with guidance. Zeros without an image: the UNet
        requires the input for every job."""
        positive = negative = self._zero_embeds
        if image is not None:
            positive, negative = self._encode(image)
        rows = [negative, positive] if guided else [positive]
        return [torch.cat([embeds[None].repeat_interleave(images, dim=0) for embeds in rows])]

    def _encode(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings of an image and those without one, from the cache where they are: the encoder
        then stays where it is."""
        key = cache_key(
            "ip adapter",
            self._weights,
            image_digest(image),
            self._pooled,
            self.encoder.dtype,
            self._device.type,
        )
        cached = self._cache.get(key, self._device)
        if cached is not None and cached[0] is not None and cached[1] is not None:
            return cached[0], cached[1]
        pixels = clip_pixels(image, self._side_px)[None]
        positive = self._embed(pixels)
        negative = self._zero_embeds if self._pooled else self._embed(torch.zeros_like(pixels))
        self._cache.put(key, (positive, negative))
        return positive, negative

    @torch.no_grad()
    def _check_encoder(self, files: AdapterFiles) -> None:
        """Raise `ModelLoadError` if the adapter was trained with another image encoder: every job would fail,
        also those without a reference."""
        try:
            self._unet.encoder_hid_proj(self.image_embeds(None, 1, guided=False))
        except RuntimeError as error:
            raise ModelLoadError(
                f"{files.weights.name} does not fit the image encoder in {files.encoder}, whose embeddings"
                f" are {self._zero_embeds.shape[-1]} wide: it was trained with another one."
            ) from error

    @torch.no_grad()
    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, width), or (1, patches, width) for an adapter that attends to the patches."""
        output = self.encoder(
            pixels.to(self._device, self.encoder.dtype), output_hidden_states=not self._pooled
        )
        embeds: torch.Tensor = output.image_embeds if self._pooled else output.hidden_states[-2]
        return embeds

    @property
    def _side_px(self) -> int:
        return int(self.encoder.config.image_size)


def attention_block_prefixes(unet: Any) -> dict[ReferenceType, tuple[str, ...]]:
    """Name prefixes of the attention blocks that attend to the image, by reference type. In SDXL these are
    the second block of `up_blocks.0`, the last of `down_blocks.2`, and all blocks."""
    down = _innermost(unet.down_blocks, "down_blocks", last=True)
    up = _innermost(unet.up_blocks, "up_blocks", last=False)
    last = len(unet.get_submodule(down).attentions) - 1
    return {
        "style": (f"{up}.attentions.1.",),
        "composition": (f"{down}.attentions.{last}.",),
        "character": ("",),
    }


def _load_encoder(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"There is no image encoder in {folder}.")
    require_weights(folder, TRANSFORMERS_WEIGHTS, "clip image encoder", wanted="a CLIP image encoder")
    return CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def _load_weights(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The adapter's weights in the form that diffusers takes: `image_proj` and `ip_adapter` apart."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise ModelLoadError(f"There is no .safetensors file {file}.")
    weight_kinds.require(file, "ip-adapter", wanted="an IP-Adapter")
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in load_file(file).items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = tensor
    if not all(parts.values()):
        raise ModelLoadError(f"{file.name} is no IP-Adapter: it needs image_proj and ip_adapter weights.")
    return parts


def _innermost(blocks: Any, prefix: str, *, last: bool) -> str:
    """The name of the block with attention that is nearest to the UNet's middle."""
    with_attention = [index for index, block in enumerate(blocks) if getattr(block, "attentions", None)]
    return f"{prefix}.{with_attention[-1 if last else 0]}"
