"""Following a picture's style, its composition or its character: an IP-Adapter beside the prompt.

Where in the UNet the picture is heard decides what of it is taken: the deepest blocks on the way down lay a
picture out, the first on the way up paint it (Wang et al., InstantStyle, arXiv:2404.02733).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from PIL import ImageOps
from PIL.Image import Image, Resampling
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ReferenceType

_PROCESSORS = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0)
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_SPREAD = (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's pictures are normalized with (Radford et al. 2021)."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The adapter's `.safetensors` file and the folder of the CLIP image encoder it was trained with."""

    weights: Path
    encoder: Path


class IPAdapter:
    """An adapter inside the UNet of one loaded pipeline. Silent until a job asks for it."""

    def __init__(self, pipe: diffusers.StableDiffusionXLPipeline, files: AdapterFiles) -> None:
        self._unet = pipe.unet
        self._device: torch.device = pipe._execution_device
        self.encoder = _encoder(files.encoder).to(self._device, pipe.unet.dtype)
        pipe.unet._load_ip_adapter_weights([_weights(files.weights)], low_cpu_mem_usage=False)
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        self._pooled = isinstance(projection, ImageProjection)
        self.listen(None, 0.0)
        self._nothing = torch.zeros_like(self._embed(torch.zeros(1, 3, self._side, self._side)))

    def listen(self, kind: ReferenceType | None, scale: float) -> None:
        """Let the blocks of `kind` hear the picture at `scale` (0 to 1) and no others; None silences all."""
        heard = () if kind is None else hearing(self._unet)[kind]
        for name, processor in self._unet.attn_processors.items():
            if isinstance(processor, _PROCESSORS):
                processor.scale = [scale if name.startswith(heard) and heard else 0.0]

    def embeds(self, image: Image | None, pictures: int, *, guided: bool) -> list[torch.Tensor]:
        """A picture as the UNet's `image_embeds`, (pictures, 1, …), where guidance asks also without it
        twice as many. The UNet insists on them for a job without a picture too."""
        toward = away = self._nothing
        if image is not None:
            pixels = self._pixels(image)
            toward = self._embed(pixels)
            away = self._nothing if self._pooled else self._embed(torch.zeros_like(pixels))
        asked = [away, toward] if guided else [toward]
        return [torch.cat([one[None].repeat_interleave(pictures, dim=0) for one in asked])]

    @torch.no_grad()
    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, width), or (1, patches, width) for the adapters that look at every patch."""
        said = self.encoder(
            pixels.to(self._device, self.encoder.dtype), output_hidden_states=not self._pooled
        )
        found: torch.Tensor = said.image_embeds if self._pooled else said.hidden_states[-2]
        return found

    def _pixels(self, image: Image) -> torch.Tensor:
        """The middle of the picture as the encoder reads it, (1, 3, side, side)."""
        square = ImageOps.fit(image, (self._side, self._side), Resampling.BICUBIC)
        levels = (np.asarray(square, dtype=np.float32) / 255 - _MEAN) / _SPREAD
        return torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1)[None]

    @property
    def _side(self) -> int:
        return int(self.encoder.config.image_size)


def hearing(unet: Any) -> dict[ReferenceType, tuple[str, ...]]:
    """What the names of the attention blocks begin with that hear each type of reference: in SDXL the second
    of `up_blocks.0`, the last of `down_blocks.2`, and all."""
    down = _deepest(unet.down_blocks, "down_blocks", last=True)
    up = _deepest(unet.up_blocks, "up_blocks", last=False)
    last = len(unet.get_submodule(down).attentions) - 1
    return {
        "style": (f"{up}.attentions.1.",),
        "composition": (f"{down}.attentions.{last}.",),
        "character": ("",),
    }


def _encoder(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"There is no image encoder in {folder}.")
    return CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def _weights(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The adapter's two parts by name, which is how diffusers takes them."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise ModelLoadError(f"There is no .safetensors file {file}.")
    tensors = load_file(file)
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = tensor
    if not all(parts.values()):
        raise ModelLoadError(f"{file.name} is no IP-Adapter: it needs image_proj and ip_adapter weights.")
    return parts


def _deepest(blocks: Any, prefix: str, *, last: bool) -> str:
    """The block with attention that is nearest to the UNet's middle."""
    attending = [index for index, block in enumerate(blocks) if getattr(block, "attentions", None)]
    return f"{prefix}.{attending[-1 if last else 0]}"
